"""A trained model: it encodes, predicts, inverts and decodes, however it was loaded.

`diticli.models.pipeline.DiTiPipeline` is one that diffusers loads, saves and pushes to the Hub.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.config import Precision
from diticli.config_groups import Crop, ValueRange, check_value_range
from diticli.data.decode import decode_image
from diticli.data.square import to_square
from diticli.errors import ConfigError, ModelError
from diticli.models.device import gpu_convolutions
from diticli.models.encoder import SemanticEncoder
from diticli.models.gate import check_finite
from diticli.models.identity import FORM, model_identity, weights_digest
from diticli.models.largest_batch import on_halves
from diticli.models.network import Network
from diticli.models.noise_prediction import Prediction, predict
from diticli.models.pixels import Images, Picture, checked, normalise
from diticli.models.sampler import Sampler
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet import UNet
from diticli.reading import quoted, shortened
from diticli.sampling import DEFAULT_SOLVER, DEFAULT_STEPS, Solver, StepCallback
from diticli.schedule import NoiseSchedule

STORED_AS = {
    "unet": ("diffusers", "UNet2DModel"),
    "encoder": ("diticli", "SemanticEncoder"),
    "shift_decoder": ("diticli", "ShiftDecoder"),
}
"""Library and class by which `model_index.json` names the networks."""


def _window(stored: Any) -> ValueRange | None:
    """A model's `value_range`, checked.

    Raises:
        ModelError: for anything but two numbers, the lower one first.
    """
    if stored is None:
        return None
    try:
        return check_value_range((float(stored["low"]), float(stored["high"])))
    except (ConfigError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise ModelError(
            f"The model's value_range is {shortened(stored)}, not a low and a high number.",
            remedy="Train or copy it again.",
        ) from error


class DiTiModel:
    """A trained model.

    A self-supervised baseline is an encoder alone: it encodes, and refuses to predict, invert or decode.

    Args:
        unet: the frozen base; None for an encoder alone.
        encoder: images -> features.
        shift_decoder: what the features add to the base's noise estimate; None for an encoder alone.
        schedule: of the noise.
        config: settings, by attribute: `chunk_layout`, `shift_form`, `crop` and `value_range`.

    Raises:
        ChunkError: for an impossible layout.
        ModelError: when the parts do not fit each other, or weights are not finite.

    Attributes:
        chunks: which timesteps may see which dims.
        windows: the chunks' tables on the device.
        model_id: what it was loaded as; "" where it was not.
        origin: which model this is, why it was taken and what it was trained on; "" where it was not located.
        trained_on: the last alone, where its run says so.
        value_range: black and white of pictures of more than 8 bits that it is given; at first those of its training.
        usual_psnr: dB below which no reconstruction of such images was, where it was measured.
        usual_range: (low, high, images) of these dB: the middle half of so many images, where it was measured.
        transfer_rates: attribute -> share that an exchange of all chunks transfers, where it was measured.
        trained_images: how many of them stage 2 saw, where its run says so.
    """

    unet: UNet | None
    encoder: SemanticEncoder
    shift_decoder: ShiftDecoder | None
    config: Any
    chunks: ChunkLayout
    schedule: NoiseSchedule
    windows: ChunkWindows
    model_id: str
    origin: str
    trained_on: str
    value_range: ValueRange | None
    usual_psnr: float | None
    usual_range: tuple[float, float, int] | None
    transfer_rates: Mapping[str, float]
    trained_images: int | None

    def __init__(
        self,
        unet: UNet | None,
        encoder: SemanticEncoder,
        shift_decoder: ShiftDecoder | None,
        schedule: NoiseSchedule,
        config: Any,
    ) -> None:
        self.unet, self.encoder, self.shift_decoder, self.config = unet, encoder, shift_decoder, config
        self._set_up(schedule)

    def _set_up(self, schedule: NoiseSchedule) -> None:
        """Everything that follows from the parts and the settings, which are there.

        Raises:
            ChunkError: for an impossible layout.
            ModelError: when the parts do not fit each other, or weights are not finite.
        """
        if self.config.chunk_layout is None:
            raise ModelError("A DiTi model needs its chunk layout.", remedy="Pass chunk_layout=layout.to_dict().")
        self.chunks, self.schedule = ChunkLayout.from_dict(self.config.chunk_layout), schedule
        self.windows = ChunkWindows(self.chunks)
        self.model_id = self.origin = self.trained_on = ""
        self.usual_psnr = self.usual_range = self.trained_images = None
        self.transfer_rates = {}
        self.value_range = _window(self.config.get("value_range"))
        self._check_parts()
        check_finite(self.networks, "The model")
        for module in self.networks.values():
            module.eval()

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.encoder.device

    def to(self, device: torch.device) -> Self:
        """Move everything; returns the model."""
        for module in (*self.networks.values(), self.schedule, self.windows):
            module.to(device)
        return self

    def _check_parts(self) -> None:
        if (self.unet is None) != (self.shift_decoder is None):
            raise ModelError(
                "A base and a shift decoder need each other; one of them is missing.", remedy="Give both, or neither."
            )
        widths = {self.chunks.latent_dim, self.encoder.config.latent_dim}
        if self.shift_decoder is not None:
            widths.add(self.shift_decoder.config.latent_dim)
        if len(widths) != 1:
            raise ModelError(
                f"Layout, encoder and shift decoder disagree on the latent dim: {sorted(widths)}.",
                remedy="Build all three for one latent dim.",
            )
        if self.chunks.timesteps != self.schedule.timesteps:
            raise ModelError(
                f"The layout covers {self.chunks.timesteps} timesteps, the scheduler {self.schedule.timesteps}.",
                remedy="Give a layout and a scheduler with the same number of timesteps.",
            )
        if self.config.shift_form not in ("score", "posterior"):
            raise ModelError(
                f"shift_form is 'score' or 'posterior', got {quoted(self.config.shift_form)}.",
                remedy="Use one of the two.",
            )
        if self.config.crop not in get_args(Crop):
            crops = ", ".join(get_args(Crop))
            raise ModelError(f"crop is one of {crops}, got {quoted(self.config.crop)}.", remedy="Use one of them.")
        channels = [n.config.in_channels for n in (self.encoder, self.unet) if n is not None]
        if channels[0] != channels[-1] or channels[0] not in (1, 3):
            raise ModelError(
                f"Encoder and base take pictures of {' and '.join(map(str, channels))} channels.",
                remedy="Build both for 1 channel, or both for 3.",
            )

    @property
    def networks(self) -> dict[str, Network]:
        """The networks that this model has, by name."""
        parts: dict[str, Network | None]
        parts = {"encoder": self.encoder, "unet": self.unet, "shift_decoder": self.shift_decoder}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def resolution(self) -> int:
        """Image height and width that the model was trained on."""
        return int(self.encoder.config.sample_size)

    @property
    def crop(self) -> Crop:
        """Which square of a picture the model was trained on."""
        crop: Crop = self.config.crop
        return crop

    @property
    def known_as(self) -> str:
        """What pictures call it: `origin`, else `model_id`."""
        return self.origin or self.model_id

    @property
    def channels(self) -> int:
        """Of the pictures it was trained on: 1 for grey ones, else 3."""
        return int(self.encoder.config.in_channels)

    @property
    def model_hash(self) -> str:
        """Who the model is: see `diticli.models.identity.model_identity`. Reads all weights."""
        settings = {"layout": self.chunks.to_dict(), "shift_form": self.config.shift_form, "crop": self.config.crop}
        if window := self.config.get("value_range"):
            settings["value_range"] = window
        return model_identity(self.networks, self.schedule.alphas_cumprod, settings)

    def hash_like(self, recorded: str) -> str:
        """The model's hash in the form in which `recorded` is one: older files hold one of layout and weights alone."""
        if not recorded or recorded.startswith(FORM):
            return self.model_hash
        return weights_digest(self.networks, json.dumps(self.chunks.to_dict()))

    def preprocess(self, images: Sequence[Picture]) -> torch.Tensor:
        """PIL images and paths of image files -> float32 [B, C, R, R] in [-1, 1], cropped and resized as in training.

        Raises:
            ConfigError: for something else.
            UnreadableImageError: for a path that is no image file.
        """
        side = self.resolution
        arrays = [torch.from_numpy(self._square(image)) for image in images]
        if not arrays:
            return torch.empty(0, self.channels, side, side)
        return normalise(torch.stack(arrays).permute(0, 3, 1, 2))

    @property
    def reading(self) -> dict[str, Any]:
        """How pictures are read for it, beside the resolution: crop, value_range and channels."""
        return {"crop": self.crop, "value_range": self.value_range, "channels": self.channels}

    def _square(self, image: Any) -> npt.NDArray[np.uint8]:
        if isinstance(image, str | Path):
            return decode_image(Path(image), self.resolution, **self.reading)
        if isinstance(image, Image.Image):
            return to_square(image, self.resolution, **self.reading)
        raise ConfigError(
            f"{type(image).__name__} is no picture.",
            remedy="Give PIL images, paths of image files, or a float tensor or array [N, C, R, R] in [-1, 1].",
        )

    def __call__(self, images: Images, batch_size: int = 256) -> torch.Tensor:
        """As `encode`."""
        return self.encode(images, batch_size)

    @torch.no_grad()
    def encode(self, images: Images, batch_size: int = 256) -> torch.Tensor:
        """Features [B, D], float32 on the CPU, of PIL images, paths of image files, or floats [B, C, R, R] in [-1, 1].

        Raises:
            ConfigError: for a tensor of another shape or value range, or what is no picture.
            UnreadableImageError: for a path that is no image file.
        """
        x = self.as_tensor(images)
        if not len(x):
            return torch.empty(0, self.chunks.latent_dim)

        def features(part: torch.Tensor) -> torch.Tensor:
            with gpu_convolutions(self.device, self.encoder.dtype):
                return self.encoder(part.to(self.device, self.encoder.dtype)).float().cpu()

        return torch.cat([on_halves(features, part) for part in x.split(batch_size)])

    @torch.no_grad()
    def encode_uint8(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Features [B, D], float32 on the CPU, of uint8 images [B, C, R, R]; normalised on the device."""
        x = normalise(images_BCHW.to(self.device)).to(self.encoder.dtype)
        with gpu_convolutions(self.device, self.encoder.dtype):
            return self.encoder(x).float().cpu()

    @torch.no_grad()
    def predict(self, x_t: torch.Tensor, t: torch.Tensor, z: torch.Tensor, masked: bool = True) -> Prediction:
        """The base's noise estimate and the shift G, both [B, C, R, R].

        Args:
            x_t: noisy images [B, C, R, R].
            t: integer timesteps [B].
            z: features [B, D].
            masked: hide the dims that lie beyond each timestep's chunk, as in training.

        Raises:
            ModelError: for an encoder alone.
        """
        unet, shift_decoder = self.denoisers()
        x_t, t, z = (v.to(self.device) for v in (x_t, t, z))
        z_mod = shift_decoder.project(z.to(unet.dtype), t, self.windows if masked else None)
        return predict(unet, shift_decoder, x_t.to(unet.dtype), t, z_mod)[0]

    def sampler(
        self,
        *,
        solver: Solver = DEFAULT_SOLVER,
        clip: bool | None = None,
        shift_form: str | None = None,
        precision: Precision | None = None,
        compile: bool = False,
    ) -> Sampler:
        """Inference copies of base and shift decoder, to invert and decode with; see `diticli.models.sampler`.

        Making them takes about as long as one step; keep the sampler for as long as the weights stay as they are.

        Args:
            solver: "dpm" or "ddim" (as the official code); see `diticli.sampling`.
            clip: clamp the predicted x_0 at every step; None takes the solver's own default.
            shift_form: "score" or "posterior" in place of the model's own.
            precision: in which the networks compute; None takes the solver's own default.
            compile: the step with torch.compile.

        Raises:
            DeviceError: for bf16 on a GPU without it.
            ModelError: for an encoder alone.
        """
        unet, shift_decoder = self.denoisers()
        return Sampler(
            unet,
            shift_decoder,
            schedule=self.schedule,
            chunks=self.chunks,
            windows=self.windows,
            shift_form=shift_form or self.config.shift_form,
            as_tensor=self.as_tensor,
            solver=solver,
            clip=clip,
            precision=precision,
            compile=compile,
        )

    def invert(
        self,
        images: Images,
        z: torch.Tensor | npt.NDArray[Any],
        steps: int = DEFAULT_STEPS,
        *,
        callback: StepCallback | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Noise x_T [B, C, R, R] from which `decode` under the same z gives the images back.

        Args:
            images: PIL images, paths of image files, or floats [B, C, R, R] in [-1, 1].
            z: features [B, D], a tensor or an array.
            steps: number of steps.
            callback: called as (steps done, steps in all) after each step.
            options: of a `sampler`, made anew from the weights as they are; for many calls make one yourself.

        Raises:
            ConfigError: for another shape or value range, an unknown solver, or an impossible number of steps.
            DeviceError: for bf16 on a GPU without it.
            ModelError: for an encoder alone.
        """
        return self.sampler(**options).invert(images, z, steps, callback=callback)

    def decode(
        self,
        x_T: torch.Tensor | npt.NDArray[Any],
        z: torch.Tensor | npt.NDArray[Any],
        steps: int = DEFAULT_STEPS,
        *,
        callback: StepCallback | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Images [B, C, R, R], about [-1, 1] (within it where clamped), from noise x_T under features z.

        Arguments and errors as `invert`.
        """
        return self.sampler(**options).decode(x_T, z, steps, callback=callback)

    def denoisers(self) -> tuple[UNet, ShiftDecoder]:
        """The base and its shift decoder.

        Raises:
            ModelError: for an encoder alone.
        """
        if self.unet is None or self.shift_decoder is None:
            raise ModelError(
                "This model is an encoder alone: it was trained by a self-supervised loss, without a base.",
                remedy="It can encode and be probed. To predict or edit, use a model trained without --ssl-only.",
            )
        return self.unet, self.shift_decoder

    def as_tensor(self, images: Images) -> torch.Tensor:
        """Pictures, preprocessed, or a tensor or array [B, C, R, R] in [-1, 1], checked.

        Raises:
            ConfigError: for a tensor of another shape or value range, or what is no picture.
            UnreadableImageError: for a path that is no image file.
        """
        if isinstance(images, np.ndarray) and images.dtype != object:
            images = torch.from_numpy(np.ascontiguousarray(images))
        if isinstance(images, torch.Tensor):
            return checked(images, self.resolution, self.channels)
        if isinstance(images, Image.Image | str | Path):
            return self.preprocess([images])
        if not isinstance(images, Iterable):
            return self.preprocess([images])  # which names it
        return self.preprocess(list(images))
