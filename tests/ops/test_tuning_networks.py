"""Whole networks under `auto` where a machine's measurements chose Triton, in its interpreter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diti_kernels import sites
from diti_kernels.adaptive_group_norm import launch
from op_sites import Site as Place
from test_training import losses, tiny

from diticli.doctor import tuning as doctor
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.training.run import train
from diticli.tuning import cache, tune
from diticli.tuning.cache import TuningCache, Verdict


@pytest.fixture(autouse=True)
def every_kernel_wins(triton_site: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The CPU counts as a GPU on which Triton is right and twice as fast; the numbers of launches of norms."""
    if triton_site.device != "cpu":
        pytest.skip("where there is a GPU, Triton has no interpreter, and the CPU cannot stand for one")
    monkeypatch.delenv("DITI_KERNELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sites, "MEASURED_DEVICES", ("cpu",))
    monkeypatch.setattr(tune, "_installed", lambda way: way == "triton")
    monkeypatch.setattr(tune, "_spent", 0.0)

    def trials(missing: list[sites.Site], *arguments: object) -> Iterator[Verdict]:
        for site in missing:
            yield Verdict(
                site=site, way="triton", choice="triton", outcome="right", detail="", reference_ms=2, way_ms=1
            )

    monkeypatch.setattr(tune, "run_trials", trials)
    launched, forward = [0], launch.triton_forward

    def counted(*arguments: Any) -> Any:
        launched[0] += 1
        return forward(*arguments)

    monkeypatch.setattr(launch, "triton_forward", counted)
    sites.forget()
    yield launched
    sites.forget()


def test_a_training_chooses_before_its_first_step(
    every_kernel_wins: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("base.images=2", "base.batch_size=2", "features.images=2", "features.batch_size=2")
    train(config, tmp_path / "tuned")
    assert every_kernel_wins[0] > 0
    kept = json.loads((tmp_path / "tuned" / "kernels.json").read_text())
    assert {part: {row["choice"] for row in found} for part, found in kept.items()} == {
        "base": {"triton"},
        "features": {"triton"},
    }
    assert {row["operation"] for row in kept["features"]} == {"adaptive_group_norm", "masked_linear"}
    every_kernel_wins[0] = 0
    monkeypatch.setattr(sites, "MEASURED_DEVICES", ())
    sites.forget()
    train(config, tmp_path / "plain")
    assert every_kernel_wins[0] == 0
    for (*_, tuned), (*_, plain) in zip(losses(tmp_path / "tuned"), losses(tmp_path / "plain"), strict=True):
        assert tuned == pytest.approx(plain, rel=1e-5)


def test_encoding_and_sampling_choose_at_their_first_batch(every_kernel_wins: list[int], make_pipeline: Any) -> None:
    pipeline = make_pipeline()
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    features = BatchEncoder(pipeline.encoder, "fp32")(images)
    encoded, every_kernel_wins[0] = every_kernel_wins[0], 0
    decoded = pipeline.sampler(precision="fp32").decode(torch.randn(2, 3, 16, 16), features, steps=2)
    assert encoded > 0
    assert every_kernel_wins[0] > 0
    assert decoded.isfinite().all()
    sites.forget()
    torch.testing.assert_close(pipeline.encoder(images / 127.5 - 1), features, rtol=0, atol=1e-4)


def test_the_sites_of_a_preset_cover_training_encoding_and_editing(every_kernel_wins: list[int]) -> None:
    found = doctor.Networks.of_preset("faces32", torch.device("cpu")).sites()
    assert {site.mode for site in found} >= {"eager", "captured"}
    assert {site.operation for site in found} == {"adaptive_group_norm", "masked_linear", "attention"}
    assert any(any(site.wants) for site in found)
    assert every_kernel_wins[0] == 0


def test_doctor_shows_each_site_with_both_times(every_kernel_wins: list[int]) -> None:
    cpu = torch.device("cpu")
    (nothing,) = doctor.tuning(cpu)
    assert (nothing.status, nothing.name) == ("note", "kernels")
    site = sites.Site("masked_linear", "eager", "float32", (4, 10, 7, 11), (True,) * 3, ("cumulative", "bias"))
    known = TuningCache(cache.environment(cpu), tune.SilentReporter())
    known.write(
        Verdict(site=site, way="triton", choice="triton", outcome="right", detail="ok", reference_ms=2.5, way_ms=1)
    )
    other = site._replace(mode="compiled")
    known.write(Verdict(site=other, way="triton", choice="reference", outcome="wrong", detail="value: error 0.1"))
    (known.folder / "x.json").write_text("{")
    damaged, wrong, right = doctor.tuning(cpu)
    assert damaged.status == wrong.status == "note"
    assert "report" in wrong.remedy
    assert right.value == "triton: reference 2.5 ms, triton 1 ms, 2.50 times as fast (taken from 1.1), right (ok)"
    by_mode = {row["site"]["mode"]: row for row in doctor.rows(cpu)}
    assert by_mode["eager"]["ratio"] == 2.5
    assert by_mode["compiled"]["choice"] == "reference"
