"""Self-supervised losses against loops over pairs, alone and over two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diticli.config import RunConfig
from diticli.config_groups import SSLConfig, StageConfig
from diticli.errors import ConfigError
from diticli.settings import build_config
from diticli.training.objectives import EncoderObjective, JointObjective, StepLosses
from diticli.training.ssl import SimCLRHead, SimSiamHead, build_head, negative_cosine, nt_xent


def slow_nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. 1 of the SimCLR paper as it is written, in float64."""
    views, n = torch.cat([first, second]).double(), len(first)
    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        similar = [F.cosine_similarity(views[i], views[k], dim=0) / temperature for k in range(2 * n)]
        rest = torch.stack([s for k, s in enumerate(similar) if k != i]).exp().sum()
        losses.append(-(similar[j].exp() / rest).log())
    return torch.stack(losses).view(2, n).mean(0)


@pytest.mark.parametrize(("images", "temperature"), [(1, 0.5), (5, 0.5), (8, 0.07)])
def test_nt_xent_is_equation_1(images: int, temperature: float) -> None:
    first, second = (torch.randn(images, 6).mul(3).requires_grad_() for _ in range(2))
    got, wanted = nt_xent(first, second, temperature=temperature), slow_nt_xent(first, second, temperature)
    assert got.shape == (images,)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(got.mean(), (first, second)),
        torch.autograd.grad(wanted.mean(), (first, second)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_nt_xent_knows_a_pair_from_strangers() -> None:
    one = F.one_hot(torch.arange(4), 8).float()
    alike, apart = nt_xent(one, one), nt_xent(one, one.roll(1, 0))
    assert bool((alike < apart).all())
    torch.testing.assert_close(nt_xent(one, 100 * one), alike)


def test_nt_xent_is_float32_under_autocast() -> None:
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        got = nt_xent(first, second)
    assert got.dtype == torch.float32
    assert torch.equal(got, nt_xent(first, second))


def test_negative_cosine_stops_the_gradient_of_the_target() -> None:
    p, z = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    got = negative_cosine(p, z)
    for i in range(3):
        torch.testing.assert_close(got[i], -(p[i] @ z[i]) / (p[i].norm() * z[i].norm()))
    got.sum().backward()
    assert z.grad is None
    assert p.grad is not None


def test_simsiam_is_symmetric_and_compares_predictions_with_projections() -> None:
    head = SimSiamHead(8, 16, 4, 12)
    first, second = torch.randn(6, 8), torch.randn(6, 8)
    z1, z2 = head.projector(first), head.projector(second)
    p1, p2 = head.predictor(z1), head.predictor(z2)
    wanted = -(F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)) / 2
    torch.testing.assert_close(head(first, second), wanted)
    torch.testing.assert_close(head(second, first), wanted)


def layers(module: nn.Module) -> list[tuple[int, ...]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def test_heads_have_the_official_sizes() -> None:
    simclr = build_head(SSLConfig(method="simclr"), 512)
    assert isinstance(simclr, SimCLRHead)
    assert layers(simclr.projector) == [(512, 2048), (2048, 128)]
    assert simclr.temperature == 0.5
    assert not any(isinstance(m, nn.BatchNorm1d) for m in simclr.modules())
    assert layers(build_head(SSLConfig(method="simclr", only=True), 512)) == [(512, 512), (512, 256)]
    simsiam = build_head(SSLConfig(method="simsiam"), 512)
    assert isinstance(simsiam, SimSiamHead)
    assert layers(simsiam.projector) == [(512, 512)] * 3
    assert layers(simsiam.predictor) == [(512, 128), (128, 512)]
    assert [m.num_features for m in simsiam.modules() if isinstance(m, nn.BatchNorm1d)] == [512, 512, 512, 128]
    small = build_head(SSLConfig(method="simsiam", hidden_dim=32, out_dim=24, bottleneck_dim=8), 16)
    assert layers(small) == [(16, 32), (32, 32), (32, 24), (24, 8), (8, 24)]


class _Features(nn.Module):
    """A stage 2 loss that needs no base."""

    timesteps = 1000

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.shift_decoder = encoder, nn.Linear(1, 1)

    def forward(self, x0_BCHW: torch.Tensor, t_B: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        return self.encoder(x0_BCHW).square().mean(1) + 0 * t_B

    def trained_modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "shift_decoder": self.shift_decoder}


def test_joint_loss_is_the_weighted_sum_and_waits_for_views() -> None:
    encoder, head = nn.Sequential(nn.Flatten(), nn.Linear(12, 8)), SimCLRHead(8, 16, 4)
    joint, alone = JointObjective(_Features(encoder), head, 0.25), EncoderObjective(encoder, head, 0.25)  # type: ignore[arg-type]
    x0, views = torch.randn(5, 3, 2, 2), torch.randn(2, 5, 3, 2, 2)
    both = joint(x0, torch.zeros(5), x0, views_2BCHW=views)
    ssl = head(encoder(views[0]), encoder(views[1]))
    torch.testing.assert_close(both.ssl_B, ssl)
    torch.testing.assert_close(both.total_B, both.noise_B + 0.25 * ssl)
    torch.testing.assert_close(alone(views).total_B, 0.25 * ssl)
    assert alone(views).noise_B is None
    early = joint(x0, torch.zeros(5), x0)
    assert early.ssl_B is None
    assert torch.equal(early.total_B, both.noise_B)
    early.total_B.mean().backward()
    assert all(p.grad is None for p in head.parameters())
    assert set(joint.trained_modules()) == {"encoder", "shift_decoder"}, "the head stays behind"
    assert (joint.timesteps, alone.timesteps) == (1000, 0)


def test_a_lone_tensor_is_a_loss_of_the_time_step() -> None:
    loss = torch.rand(3)
    assert StepLosses.coerce(loss) == StepLosses(loss, loss, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": -0.1}, "ssl.weight must be zero or more, got -0.1"),
        ({"weight": float("nan")}, "ssl.weight must be zero or more, got nan"),
        ({"temperature": 0.0}, "ssl.temperature must be above zero"),
        ({"min_crop": 0.0}, r"ssl.min_crop in \(0, 1\]"),
        ({"start_step": -1}, "must not be negative"),
        ({"bottleneck_dim": 0}, "bottleneck_dim must be above zero"),
        ({"only": True}, "there is none: method none"),
        ({"only": True, "method": "simclr", "weight": 0.0}, "there is none: method simclr, weight 0"),
        ({"only": True, "method": "simclr", "start_step": 3}, "nothing else to train before ssl.start_step 3"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SSLConfig(**settings)  # type: ignore[arg-type]


def test_settings_must_fit_the_run() -> None:
    simclr = SSLConfig(method="simclr", start_step=10)
    RunConfig(ssl=simclr, features=StageConfig(images=88, batch_size=8))
    with pytest.raises(ConfigError, match=r"ssl\.start_step 10 lies beyond the 10 steps"):
        RunConfig(ssl=simclr, features=StageConfig(images=80, batch_size=8))
    with pytest.raises(ConfigError, match="compares images of a batch"):
        RunConfig(ssl=SSLConfig(method="simsiam"), features=StageConfig(batch_size=1))
    with pytest.raises(ConfigError, match="without a base, but one is given: 'runs/x'"):
        RunConfig(ssl=SSLConfig(method="simsiam", only=True), base_model="runs/x")
    with pytest.raises(ConfigError, match=r"ssl\.method is one of none, simclr, simsiam; got 'moco'"):
        build_config("faces32", assignments=("ssl.method=moco",))


def test_an_encoder_alone_has_one_chunk() -> None:
    config = build_config("celeba64", options={"ssl.method": "simclr", "ssl.only": True})
    assert config.layout().ends == (512,)
    assert build_config("celeba64", options={"ssl.method": "simclr"}).layout().chunks == 64


DISTRIBUTED = """
import json, os, sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from diticli.training.objectives import EncoderObjective
from diticli.training.ssl import SimCLRHead, SimSiamHead

torch.set_num_threads(1)
world = int(os.environ["WORLD_SIZE"])
if world > 1:
    distributed.init_process_group("gloo")
for method in ("simclr", "simsiam"):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh())
    head = SimCLRHead(8, 16, 4) if method == "simclr" else SimSiamHead(8, 16, 4, 12)
    objective = EncoderObjective(encoder, head, 1.0)
    views = torch.randn(2, 6, 3, 2, 2)
    if world > 1:
        rank, part = distributed.get_rank(), 6 // world
        views = views[:, rank * part : (rank + 1) * part]
        module = DistributedDataParallel(objective)
    else:
        rank, module = 0, objective
    losses = module(views).total_B
    losses.mean().backward()
    result = {"losses": losses.tolist(), "grads": [p.grad.flatten().tolist() for p in objective.parameters()]}
    result["buffers"] = [b.flatten().tolist() for b in objective.buffers()]
    open(f"{sys.argv[1]}/{method}-{world}-{rank}.json", "w").write(json.dumps(result))
if world > 1:
    distributed.barrier()  # neither leaves while the other still sends
    del module, losses  # these hold the group, too
    distributed.destroy_process_group()
"""


def launch(arguments: list[str], world: int) -> None:
    """Run `python ARGUMENTS` as `world` processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        error = process.communicate(timeout=300)[1]
        assert process.returncode == 0, error


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each process of one and of two has of both methods."""
    folder = tmp_path_factory.mktemp("shared")
    for world in (1, 2):
        launch(["-c", DISTRIBUTED, str(folder)], world)
    return folder


@pytest.mark.parametrize("method", ["simclr", "simsiam"])
def test_two_processes_have_the_loss_and_gradient_of_the_global_batch(shared: Path, method: str) -> None:
    """And SimSiam's running statistics."""
    whole, *parts = (json.loads((shared / f"{method}-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    together = torch.tensor(parts[0]["losses"] + parts[1]["losses"])
    torch.testing.assert_close(together, torch.tensor(whole["losses"]))
    assert len(whole["buffers"]) == (12 if method == "simsiam" else 0)
    for part in parts:
        for name in ("grads", "buffers"):
            for mine, wanted in zip(part[name], whole[name], strict=True):
                torch.testing.assert_close(torch.tensor(mine), torch.tensor(wanted), atol=1e-6, rtol=1e-4)
    assert sum(any(wanted) for wanted in whole["grads"]) >= len(whole["grads"]) - 4, "zeros prove nothing"
