"""Self-supervised losses on two views of each image: SimCLR and SimSiam, with their heads.

Sources: SimCLR, Chen et al., ICML 2020 (arXiv 2002.05709); SimSiam, Chen and He, CVPR 2021 (arXiv 2011.10566).
Head sizes and temperature are those of the official DiTi configurations.

Legend of shape suffixes: B images of this process, N images of all processes, D features, E embedding.
"""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from diticli.config_groups import SSLConfig


def nt_xent(first_BE: torch.Tensor, second_BE: torch.Tensor, *, temperature: float = 0.5) -> torch.Tensor:
    """NT-Xent (SimCLR eq. 1): find an image's other view among all other views of the global batch.

    The views of other processes are negatives as well, and get their gradient: averaging the gradients of the
    processes (as DDP does) gives exactly the gradient of the global batch.

    Args:
        first_BE: embeddings of one view of each image.
        second_BE: embeddings of the other, same order.
        temperature: tau.

    Returns:
        Loss [B], the mean over the two views of an image as anchors; float32.
    """
    views_2BE = torch.stack([F.normalize(view.float(), dim=-1) for view in (first_BE, second_BE)])
    images = views_2BE.shape[1]
    others_2NE, own = views_2BE, 0
    if _processes() > 1:
        others_2NE, own = torch.cat(all_gather(views_2BE), dim=1), distributed.get_rank() * images
    with torch.autocast(views_2BE.device.type, enabled=False):
        similarity = views_2BE.flatten(0, 1) @ others_2NE.flatten(0, 1).T / temperature
    place = torch.arange(own, own + images, device=views_2BE.device)
    total = others_2NE.shape[1]
    itself, partner = torch.cat([place, place + total]), torch.cat([place + total, place])
    similarity = similarity.scatter(1, itself[:, None], -torch.inf)
    return F.cross_entropy(similarity, partner, reduction="none").view(2, images).mean(0)


def negative_cosine(prediction_BE: torch.Tensor, target_BE: torch.Tensor) -> torch.Tensor:
    """D(p, stopgrad(z)) (SimSiam eq. 1 and 2), [B] in [-1, 1], float32; no gradient reaches the target."""
    return -F.cosine_similarity(prediction_BE.float(), target_BE.detach().float(), dim=-1)


class SimCLRHead(nn.Module):
    """Projector of two layers without batch norm, and NT-Xent.

    Args:
        latent_dim: D.
        hidden_dim: width between the layers.
        out_dim: E.
        temperature: of the loss.
    """

    def __init__(self, latent_dim: int, hidden_dim: int, out_dim: int, temperature: float = 0.5) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim)
        )
        self.temperature = temperature

    def forward(self, first_BD: torch.Tensor, second_BD: torch.Tensor) -> torch.Tensor:
        """Loss [B] of the features of two views."""
        return nt_xent(self.projector(first_BD), self.projector(second_BD), temperature=self.temperature)


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm over the batches of all processes; one process trains as with `nn.BatchNorm1d`.

    PyTorch's `SyncBatchNorm` takes tensors on a GPU only. Features are small enough to gather them whole. Every process
    must have as many rows.
    """

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Normalised features [B, D]."""
        if not self.training or _processes() == 1:
            return super().forward(features_BD)
        images, own = len(features_BD), distributed.get_rank() * len(features_BD)
        return super().forward(torch.cat(all_gather(features_BD)))[own : own + images]


class SimSiamHead(nn.Module):
    """Projector of three layers and predictor of two, with batch norm, and the symmetric negative cosine.

    Batch norm follows every layer of the projector, and the first of the predictor (SimSiam, section 3). It sees the
    global batch (ibid., baseline settings).

    Args:
        latent_dim: D.
        hidden_dim: width of the projector's hidden layers.
        bottleneck_dim: hidden width of the predictor.
        out_dim: E.
    """

    def __init__(self, latent_dim: int, hidden_dim: int, bottleneck_dim: int, out_dim: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            *_normalised(latent_dim, hidden_dim),
            nn.ReLU(inplace=True),
            *_normalised(hidden_dim, hidden_dim),
            nn.ReLU(inplace=True),
            *_normalised(hidden_dim, out_dim),
        )
        self.predictor = nn.Sequential(
            *_normalised(out_dim, bottleneck_dim), nn.ReLU(inplace=True), nn.Linear(bottleneck_dim, out_dim)
        )

    def forward(self, first_BD: torch.Tensor, second_BD: torch.Tensor) -> torch.Tensor:
        """Loss [B] of the features of two views (SimSiam eq. 2)."""
        first, second = self.projector(first_BD), self.projector(second_BD)
        forth = negative_cosine(self.predictor(first), second)
        back = negative_cosine(self.predictor(second), first)
        return (forth + back) / 2


def build_head(ssl: SSLConfig, latent_dim: int) -> nn.Module:
    """The head of a method, with the official sizes where none are set.

    Args:
        ssl: settings with a method.
        latent_dim: D.
    """
    if ssl.method == "simclr":
        beside, alone = (2048, 128), (latent_dim, 256)
        hidden, out = alone if ssl.only else beside
        return SimCLRHead(latent_dim, ssl.hidden_dim or hidden, ssl.out_dim or out, ssl.temperature)
    return SimSiamHead(latent_dim, ssl.hidden_dim or latent_dim, ssl.bottleneck_dim, ssl.out_dim or latent_dim)


def _normalised(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, outputs), GlobalBatchNorm(outputs)


def _processes() -> int:
    running = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if running else 1
