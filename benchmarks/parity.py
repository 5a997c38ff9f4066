"""How far are our numbers from a recorded run of the official code?

    python -m benchmarks.parity tests/data/golden_balanced --out benchmarks/results/NAME.json

Each folder holds an official checkpoint, its configs, and `golden.safetensors` with the official inputs and outputs.
Deviations are the largest absolute one relative to the largest official value. "End to end" edits start from our own
inversion, the others from the official one: with the random weights of a golden run decoding magnifies a difference
in x_T some sixty times.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from diticli.editing.pair import Edit, EditSettings, counterfactuals
from diticli.models.pipeline import DiTiPipeline
from diticli.official.convert import pipeline_from_official
from diticli.training.objectives import FeatureObjective
from diticli.training.rundir import versions

Golden = dict[str, torch.Tensor]
MODES = {"base": "cumulative", "stop_grad": "detached"}


def deviation(got: torch.Tensor, official: torch.Tensor) -> float:
    """Largest deviation relative to the largest official value."""
    return float((got - official).detach().abs().max() / official.abs().max())


def losses(pipeline: DiTiPipeline, golden: Golden) -> dict[str, float]:
    """Loss, losses per sample and parameter gradients in both gradient modes."""
    assert pipeline.unet is not None
    assert pipeline.shift_decoder is not None
    watched = {
        "encoder.first_conv": pipeline.encoder.convs[0].weight,
        "label_emb.weight": pipeline.shift_decoder.z_embedding.weight,
        "shift_out.conv": pipeline.shift_decoder.conv_out.weight,
    }
    parts = (pipeline.unet, pipeline.encoder, pipeline.shift_decoder, pipeline.schedule, pipeline.chunks)
    found = {}
    for theirs, ours in MODES.items():
        per_sample = FeatureObjective(*parts, ours)(golden["x0"], golden["loss.t"], golden["loss.noise"])
        gradients = torch.autograd.grad(per_sample.mean(), list(watched.values()))
        found[f"loss.{theirs}"] = deviation(per_sample.mean(), golden[f"loss.{theirs}"])
        found[f"loss.{theirs}.per_sample"] = deviation(per_sample, golden[f"loss.{theirs}.per_sample"])
        for name, gradient in zip(watched, gradients, strict=True):
            found[f"loss.{theirs}.grad.{name}"] = deviation(gradient, golden[f"loss.{theirs}.grad.{name}"])
    return found


def pictures(pipeline: DiTiPipeline, golden: Golden) -> dict[str, float]:
    """Inversion, reconstruction and edits under `EditSettings.like_official`, at the golden run's step counts."""
    low, high = golden["edit.chunks"].tolist()
    edits = [Edit("a", tuple(range(low, high)), alpha) for alpha in golden["edit.alphas"].tolist()]
    invert_steps, decode_steps = golden["ddim.steps"].tolist()
    settings = EditSettings.like_official(invert_steps=invert_steps, decode_steps=decode_steps)
    inverted = pipeline.invert(golden["x0"][:2], golden["z"][:2], invert_steps, solver="ddim", shift_form="score")
    found = {"ddim.inverted": deviation(inverted, golden["ddim.inverted"])}
    for name, x_T in (("", golden["ddim.inverted"]), (" (end to end)", inverted)):
        pipeline.invert = lambda *arguments, x_T=x_T, **options: x_T  # type: ignore[method-assign]
        images = counterfactuals(pipeline, golden["x0"][:2], edits, settings=settings)[1]
        found[f"ddim.reconstructed{name}"] = deviation(images[:2], golden["ddim.reconstructed"])
        found[f"edit.images{name}"] = deviation(images[2:], golden["edit.images"])
        mean = (images[2:] - golden["edit.images"]).abs().mean()
        found[f"edit.images, mean{name}"] = float(mean)
    del pipeline.invert
    return found


def measure(folder: Path) -> dict[str, Any]:
    """Deviation of every recorded quantity of one golden run."""
    golden, pipeline = load_file(folder / "golden.safetensors"), pipeline_from_official(folder)
    noise, shift = pipeline.predict(golden["forward.x_t"], golden["forward.t"], golden["z"], masked=False)
    return {
        "chunk ends equal": list(pipeline.chunks.ends) == golden["masks.end_dims"].tolist(),
        "z": deviation(pipeline.encode(golden["x0"]), golden["z"]),
        "forward.noise": deviation(noise, golden["forward.noise"]),
        "forward.shift": deviation(shift, golden["forward.shift"]),
        **losses(pipeline, golden),
        **pictures(pipeline, golden),
    }


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found = {folder.name: measure(folder) for folder in options.folders}
    for name in next(iter(found.values())):
        print(f"{name:42}", *(f"{case[name]:>12.2e}" if name[0] != "c" else case[name] for case in found.values()))
    if options.out is not None:
        facts = {
            "what": "largest deviation from recorded runs of the official code, relative to the largest official value",
            "date": datetime.date.today().isoformat(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        options.out.write_text(json.dumps({**facts, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
