"""How close reconstructions come to their originals, and how real edits look: SSIM, MS-SSIM, LPIPS, FID, KID.

SSIM is our own; the others are those of torchmetrics (`pip install "diticli[metrics]"`). LPIPS (Zhang et al., CVPR
2018), FID (Heusel et al., NeurIPS 2017) and KID (Binkowski et al., ICLR 2018) need networks that others trained: their
weights are read from a folder that is named, or from PyTorch's own cache. Nothing is downloaded; a measure that cannot
be taken is named with the reason.

Realism of counterfactuals, as Melistas et al. (NeurIPS 2024) mean it, is the FID of edits to real images.

Legend of shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # only to catch what torch raises
from typing import TYPE_CHECKING, Any

import torch

from diticli.editing.mixing import mix_chunks
from diticli.evaluation.decoding import Decoding
from diticli.evaluation.image_metrics import WINDOW, ssim
from diticli.files import write_torch
from diticli.models.pixels import normalise

if TYPE_CHECKING:
    from diticli.models.model import DiTiModel

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
ALEXNET = "alexnet-owt-7be5be79.pth"
SOURCES = {
    INCEPTION: "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0",
    ALEXNET: "https://download.pytorch.org/models",
}
"""Where each file of weights is published."""
SET_IMAGES = 1000
"""Images of each subset of KID."""
MS_SSIM_SIDE = 161
"""Pixels a side that five scales of an 11 x 11 window take."""
EXTRA = 'torchmetrics is missing: pip install "diticli[metrics]"'
_BATCH = 64

Compare = Callable[[torch.Tensor, torch.Tensor], float]
"""uint8 originals and others [N, 3, H, W] -> a score."""


@dataclass(frozen=True, kw_only=True)
class Realism:
    """Scores against the originals.

    Attributes:
        images: N. FID depends on it: compare only scores of as many images.
        reconstructions: measure -> score of the images inverted and decoded.
        edits: chunks exchanged, as text -> measure -> score of the edited images.
        missing: measure -> why there is none.
    """

    images: int
    reconstructions: dict[str, float]
    edits: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(vars(self))


def measure_realism(
    pipeline: DiTiModel,
    images_NCHW: torch.Tensor,
    sets: Mapping[str, tuple[int, ...]],
    decoding: Decoding,
    weights: Path | None,
) -> Realism:
    """Score reconstructions, and exchanges of chunks within pairs of images.

    Args:
        pipeline: the model.
        images_NCHW: uint8 images of its resolution; rows 2i and 2i+1 are a pair.
        sets: name -> chunks that are exchanged.
        decoding: inverts and decodes, or finds what was decoded before.
        weights: folder of the networks' weights; None looks in PyTorch's cache alone.

    Raises:
        ModelError: for an encoder alone.
    """
    x0, original = normalise(images_NCHW), _colour(images_NCHW)
    z, partner = pipeline.encode(x0), torch.arange(len(x0)) ^ 1
    x_T = decoding.invert(x0, z)

    def decoded(z: torch.Tensor) -> torch.Tensor:
        return _colour(torch.from_numpy(decoding.judge(x_T, z).pixels).movedim(-1, 1))

    pairwise, missing = pairwise_measures(images_NCHW.shape[-1], weights)
    of_sets, missing_of_sets = set_measures(weights)
    again = decoded(z)
    edits = {}
    for name, chunks in sets.items():
        edited = decoded(mix_chunks(z, z[partner], pipeline.chunks, chunks, 1.0))
        edits[name] = {key: measure(original, edited) for key, measure in of_sets.items()}
    measures = pairwise | of_sets
    return Realism(
        images=len(x0),
        reconstructions={key: measure(original, again) for key, measure in measures.items()},
        edits=edits,
        missing=missing | missing_of_sets,
    )


def _colour(images_NCHW: torch.Tensor) -> torch.Tensor:
    """Grey images with three equal channels, as the networks take them."""
    return images_NCHW.expand(-1, 3, -1, -1)


def pairwise_measures(side: int, weights: Path | None) -> tuple[dict[str, Compare], dict[str, str]]:
    """Measures of pairs of images: those that can be taken, and why the others cannot.

    Args:
        side: of the images, in pixels.
        weights: folder to look in first.
    """
    found: dict[str, Compare] = {}
    missing: dict[str, str] = {}
    if side < WINDOW:
        missing["ssim"] = f"it needs {WINDOW} pixels a side, the images have {side}"
    else:
        found["ssim"] = _mean_of(lambda a, b: ssim(a.float() / 127.5 - 1, b.float() / 127.5 - 1))
    if side < MS_SSIM_SIDE:
        missing["ms_ssim"] = f"it needs {MS_SSIM_SIDE} pixels a side, the images have {side}"
    else:
        with _noting(missing, "ms_ssim"):
            from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

            def of_batch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
                return ms_ssim(a.float() / 255, b.float() / 255, data_range=1.0, reduction="none")

            found["ms_ssim"] = _mean_of(of_batch)
    with _noting(missing, "lpips"):
        network = lpips_network(_weights(ALEXNET, weights))
        found["lpips"] = _mean_of(lambda a, b: network(a.float() / 255, b.float() / 255, normalize=True))
    return found, missing


def set_measures(weights: Path | None) -> tuple[dict[str, Compare], dict[str, str]]:
    """Measures of sets of images, likewise."""
    missing: dict[str, str] = {}
    with _noting(missing, "fid", "kid"):
        network = inception(_weights(INCEPTION, weights))
        return {"fid": lambda a, b: fid(network, a, b), "kid": lambda a, b: kid(network, a, b)}, missing
    return {}, missing


def lpips_network(path: Path) -> Any:
    """LPIPS on AlexNet, whose weights are torchvision's.

    Raises:
        OSError: when the file cannot be read.
        RuntimeError: when it holds other weights, or torchvision does not fit PyTorch.
    """
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    state = torch.load(path, map_location="cpu", weights_only=True)
    own = {name: state[f"features.{name.partition('.')[2]}"] for name in network.net.state_dict()}
    network.net.load_state_dict(own)
    return network


def inception(path: Path) -> torch.nn.Module:
    """Pooled features of the Inception network of the original FID, in torch-fidelity's form.

    Raises:
        OSError: when the file cannot be read.
        RuntimeError: when it holds other weights.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    state = torch.load(path, map_location="cpu", weights_only=True)
    # torch-fidelity unpickles whatever the file holds: it gets a copy that holds tensors alone.
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / INCEPTION
        write_torch(plain, state)
        # torchmetrics would smooth while it resizes, which the original does not
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(plain), antialias=False)


def fid(network: torch.nn.Module, real_NCHW: torch.Tensor, other_NCHW: torch.Tensor) -> float:
    """Frechet distance of two sets of uint8 images."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return float(_updated(FrechetInceptionDistance(feature=network), real_NCHW, other_NCHW).compute())


def kid(network: torch.nn.Module, real_NCHW: torch.Tensor, other_NCHW: torch.Tensor) -> float:
    """Kernel distance of two sets of uint8 images, without bias; may be a little below 0."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SET_IMAGES, len(real_NCHW), len(other_NCHW))
    metric = KernelInceptionDistance(feature=network, subsets=10 if len(real_NCHW) > size else 1, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(_updated(metric, real_NCHW, other_NCHW).compute()[0])


def _updated(metric: Any, real_NCHW: torch.Tensor, other_NCHW: torch.Tensor) -> Any:
    for images, real in ((real_NCHW, True), (other_NCHW, False)):
        for part in images.split(_BATCH):
            metric.update(part, real=real)
    return metric


def _mean_of(measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Compare:
    """Mean over the images of a measure of each pair."""

    @torch.no_grad()
    def mean(real_NCHW: torch.Tensor, other_NCHW: torch.Tensor) -> float:
        parts = zip(real_NCHW.split(_BATCH), other_NCHW.split(_BATCH), strict=True)
        return float(torch.cat([measure(a, b).double().flatten() for a, b in parts]).mean())

    return mean


def _weights(name: str, folder: Path | None) -> Path:
    """The file in the folder, or in PyTorch's cache.

    Raises:
        FileNotFoundError: saying where it is published.
    """
    places = [*([folder] if folder else []), Path(torch.hub.get_dir()) / "checkpoints"]
    for place in places:
        if (place / name).is_file():
            return place / name
    looked = " or ".join(map(str, places))
    raise FileNotFoundError(f"no {name} in {looked}: get it from {SOURCES[name]} and name its folder with --weights")


@contextlib.contextmanager
def _noting(missing: dict[str, str], *measures: str) -> Iterator[None]:
    """Why measures cannot be taken, in place of an error."""
    try:
        yield
    except ModuleNotFoundError as error:
        reason = EXTRA if "torchmetrics" in str(error) else f"{error}: {EXTRA.partition(': ')[2]}"
    except FileNotFoundError as error:
        reason = str(error)
    except (ImportError, OSError, RuntimeError, KeyError, ValueError, AttributeError, UnpicklingError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    else:
        return
    missing.update(dict.fromkeys(measures, reason))
