"""What a trained model does: encode, predict, invert, decode; however it was loaded.

`diticli.models.pipeline.DiTiPipeline` is one as a diffusers pipeline, `diticli.models.plain_model.PlainModel` one
that starts faster.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from diticli.chunks import ChunkLayout
from diticli.config import Precision
from diticli.data.decode import Crop, to_square
from diticli.errors import ModelError
from diticli.models.batch_size import suggest_batch_size
from diticli.models.fingerprint import Fingerprint
from diticli.models.frozen_pair import FrozenCopies
from diticli.models.heads import restore_heads
from diticli.models.parts import check_parts
from diticli.models.pixels import checked, normalise
from diticli.models.predictor import ChunkWindows, Prediction, predict
from diticli.models.shifted_noise import ShiftedNoise
from diticli.sampling import DEFAULT_PRECISION, DEFAULT_SOLVER, DEFAULT_STEPS, Solver, StepCallback, decode, invert
from diticli.schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from diticli.models.encoder import SemanticEncoder
    from diticli.models.plain_model import PlainEncoder, PlainShift
    from diticli.models.plain_unet import PlainUNet
    from diticli.models.shift_decoder import ShiftDecoder

Images = torch.Tensor | Sequence[Image.Image]


class DiTiModel:
    """A trained model.

    A self-supervised baseline is an encoder alone: it encodes, and refuses to predict, invert or decode.

    Attributes:
        unet: the frozen base; None for an encoder alone.
        encoder: images -> features.
        shift_decoder: what the features add to the base's noise estimate; None for an encoder alone.
        config: settings, by attribute: `shift_form` and `crop`.
        chunks: which time-steps may see which dims.
        schedule: the noise schedule.
        windows: the chunks' tables on the device.
        model_id: what it was loaded as; "" where it was not.
        origin: which model this is, why it was taken and what it was trained on; "" where it was not located.
    """

    unet: UNet2DModel | PlainUNet | None
    encoder: SemanticEncoder | PlainEncoder
    shift_decoder: ShiftDecoder | PlainShift | None
    config: Any
    device: Any
    chunks: ChunkLayout
    schedule: NoiseSchedule
    windows: ChunkWindows
    model_id: str
    origin: str

    def _set_up(self, schedule: NoiseSchedule, layout: ChunkLayout) -> None:
        """Everything that follows from the parts and the settings, which are there.

        Raises:
            ModelError: when the parts do not fit each other.
        """
        self.chunks, self.schedule, self.windows = layout, schedule, ChunkWindows(layout)
        self.model_id = self.origin = ""
        self._copies, self._fingerprint = FrozenCopies(), Fingerprint()
        check_parts(self)
        if self.unet is not None:
            restore_heads(self.unet)
        for module in self.networks.values():
            module.eval()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that this model has, by name."""
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
    def model_hash(self) -> str:
        """SHA-256 (first 16 hex digits) over the layout and all weights."""
        return self._fingerprint.of(json.dumps(self.chunks.to_dict()), self.networks)

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL images -> float32 [B, 3, R, R] in [-1, 1], cropped and resized as in training."""
        side = self.resolution
        arrays = [torch.from_numpy(to_square(image, side, self.crop)) for image in images]
        if not arrays:
            return torch.empty(0, 3, side, side)
        return normalise(torch.stack(arrays).permute(0, 3, 1, 2))

    @torch.no_grad()
    def encode(self, images: Images, batch_size: int = 256) -> torch.Tensor:
        """Features [B, D], float32 on the CPU, of PIL images or a float tensor [B, 3, R, R] in [-1, 1].

        Raises:
            ConfigError: for a tensor of another shape or value range.
        """
        x = self._as_tensor(images)
        if not len(x):
            return torch.empty(0, self.chunks.latent_dim)
        parts = (self.encoder(part.to(self.device, self.encoder.dtype)) for part in x.split(batch_size))
        return torch.cat([part.float().cpu() for part in parts])

    @torch.no_grad()
    def encode_uint8(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Features [B, D], float32 on the CPU, of uint8 images [B, 3, R, R]; normalised on the device."""
        x = normalise(images_BCHW.to(self.device)).to(self.encoder.dtype)
        return self.encoder(x).float().cpu()

    @torch.no_grad()
    def predict(self, x_t: torch.Tensor, t: torch.Tensor, z: torch.Tensor, masked: bool = True) -> Prediction:
        """The base's noise estimate and the shift G, both [B, 3, R, R].

        Args:
            x_t: noisy images [B, 3, R, R].
            t: integer time-steps [B].
            z: features [B, D].
            masked: hide the dims that lie beyond each time-step's chunk, as in training.

        Raises:
            ModelError: for an encoder alone.
        """
        unet, shift_decoder = self._denoisers()
        x_t, t, z = (v.to(self.device) for v in (x_t, t, z))
        z_mod = shift_decoder.project(z.to(unet.dtype), t, self.windows if masked else None)
        return predict(unet, shift_decoder, x_t.to(unet.dtype), t, z_mod)[0]

    def predict_noise(
        self,
        z: torch.Tensor,
        shift_form: str | None = None,
        precision: Precision = "fp32",
        *,
        compile: bool = False,
    ) -> ShiftedNoise:
        """The shifted noise estimate (x_t, t) -> [B, 3, R, R] under features z [B, D], for the samplers.

        Args:
            z: features [B, D].
            shift_form: stands in for the model's own, here and in `invert` and `decode`.
            precision: in which the networks compute; the estimate is float32 all the same.
            compile: the step with torch.compile, which takes as long as some thousand steps of a small model.

        Raises:
            DeviceError: for bf16 on a GPU without it.
            ModelError: for an encoder alone.
        """
        pair = self._copies.of(*self._denoisers(), precision, compile=compile)
        form = shift_form or self.config.shift_form
        return ShiftedNoise(pair, self.schedule, self.chunks, self.windows, z.to(self.device), form)

    @torch.no_grad()
    def invert(
        self,
        images: Images,
        z: torch.Tensor,
        steps: int = DEFAULT_STEPS,
        *,
        solver: Solver = DEFAULT_SOLVER,
        clip: bool | None = None,
        callback: StepCallback | None = None,
        shift_form: str | None = None,
        precision: Precision | None = None,
        compile: bool = False,
    ) -> torch.Tensor:
        """Noise x_T [B, 3, R, R] from which `decode` under the same z gives the images back.

        Args:
            images: PIL images or a float tensor [B, 3, R, R] in [-1, 1].
            z: features [B, D].
            steps: number of steps.
            solver: "dpm" or "ddim" (as the official code); see `diticli.sampling`.
            clip: clamp the predicted x_0 at every step; None takes the solver's own default.
            callback: called as (steps done, steps in all) after each step.
            shift_form: "score" or "posterior" in place of the model's own.
            precision: in which the networks compute; None takes the solver's own default.
            compile: the step, see `predict_noise`.

        Raises:
            ConfigError: for another shape or value range, an unknown solver, or an impossible number of steps.
            DeviceError: for bf16 on a GPU without it.
            ModelError: for an encoder alone.
        """
        x0 = self._as_tensor(images).to(self.device)
        noise = self.predict_noise(z, shift_form, precision or DEFAULT_PRECISION.get(solver, "fp32"), compile=compile)
        bar = self.schedule.alphas_cumprod
        return invert(noise, x0, bar, steps=steps, solver=solver, clip=clip, callback=callback)

    @torch.no_grad()
    def decode(
        self,
        x_T: torch.Tensor,
        z: torch.Tensor,
        steps: int = DEFAULT_STEPS,
        *,
        solver: Solver = DEFAULT_SOLVER,
        clip: bool | None = None,
        callback: StepCallback | None = None,
        shift_form: str | None = None,
        precision: Precision | None = None,
        compile: bool = False,
    ) -> torch.Tensor:
        """Images [B, 3, R, R], about [-1, 1] (within it where clamped), from noise x_T under features z.

        Arguments and errors as `invert`.
        """
        noise = self.predict_noise(z, shift_form, precision or DEFAULT_PRECISION.get(solver, "fp32"), compile=compile)
        bar = self.schedule.alphas_cumprod
        x_T = x_T.to(self.device).float()
        return decode(noise, x_T, bar, steps=steps, solver=solver, clip=clip, callback=callback)

    def suggest_batch_size(self, most: int = 256) -> int:
        """How many images `invert` and `decode` should take together here, see `diticli.models.batch_size`."""

        def run(count: int) -> None:
            z = torch.zeros(count, self.chunks.latent_dim)
            self.decode(torch.zeros(count, 3, self.resolution, self.resolution), z, steps=1)

        return suggest_batch_size(run, self.device, resolution=self.resolution, most=most)

    def _denoisers(self) -> tuple[UNet2DModel | PlainUNet, ShiftDecoder | PlainShift]:
        if self.unet is None or self.shift_decoder is None:
            raise ModelError(
                "This model is an encoder alone: it was trained by a self-supervised loss, without a base.",
                remedy="It can encode and be probed. To predict or edit, use a model trained without --ssl-only.",
            )
        return self.unet, self.shift_decoder

    def _as_tensor(self, images: Images) -> torch.Tensor:
        if not isinstance(images, torch.Tensor):
            return self.preprocess([images] if isinstance(images, Image.Image) else images)
        return checked(images, self.resolution)
