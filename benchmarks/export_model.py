"""Make the model that ships with the package from a run, with its model card: the last steps of `make model`.

    python -m benchmarks.export_model runs/shipped            # weights in float16, training.json, card
    python -m benchmarks.export_model runs/shipped --card     # the card anew, from what was measured meanwhile

The card takes its figures from RUN/probe/report.json (`diti probe`) and RUN/evaluation/evaluation.json
(`diti evaluate shipped --atlas`), and the swap atlas from the latter; what is missing is left out. Of a run that is
still training, the moving average of its newest checkpoint is taken, and the card says after how many images.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from diticli.config import RunConfig
from diticli.data.faces import write_labels_csv
from diticli.data.images import FaceImages
from diticli.editing.reconstruct import reconstruct
from diticli.editing.settings import EditSettings
from diticli.models.base_files import load_base
from diticli.models.hub import SHIPPED_FOLDER
from diticli.models.load import TRAINING, load_model, load_pipeline
from diticli.models.pipeline import DiTiPipeline
from diticli.settings import from_dict
from diticli.training.checkpoint import list_checkpoints, load_checkpoint
from diticli.training.stage_two import build_objective

HELD_OUT = 4000
"""Faces of seed 1 whose true factors RUN/labels.csv gets, for the probe."""
LARGEST = 8 * 2**20
"""Bytes that the package may carry for its model."""
CARD = jinja2.Template(Path(__file__).with_name("model_card.md.j2").read_text(), trim_blocks=True)


def export(run: str, out: Path) -> None:
    """Write the pipeline of a run with float16 weights, and the settings it was trained with."""
    pipeline, images = trained(Path(run))
    for network in pipeline.networks.values():
        network.half()
    shutil.rmtree(out, ignore_errors=True)
    pipeline.save_pretrained(out)
    record = json.loads((Path(run) / "config.json").read_text())
    record["images_seen"] = images or record["config"]["features"]["images"]
    if base := record["config"]["base_model"]:
        found = Path(base) if (Path(base) / "config.json").is_file() else Path(base).parent
        if (found / "config.json").is_file():  # stage 1 was a run of its own
            record["config"]["base"] = json.loads((found / "config.json").read_text())["config"]["base"]
        record["config"]["base_model"] = ""
    write_labels_csv(Path(run) / "labels.csv", 1, range(HELD_OUT))
    record["reconstruction_psnr_db"] = own_psnr(out)
    kept = ("config", "versions", "images_seen", "reconstruction_psnr_db")
    text = json.dumps({key: record[key] for key in kept if key in record}, indent=1)
    (out / TRAINING).write_text(text + "\n")
    for path in out.rglob("*.json"):  # diffusers adds where each part was loaded from
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)
        path.write_text(json.dumps(settings, indent=2) + "\n")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)  # diffusers leaves them to their owner; a package is for everyone


def own_psnr(model: Path, faces: int = 48) -> dict[str, float]:
    """PSNR in dB of the reconstructions of held-out faces at the default steps, in float32: least and quartiles."""
    pipeline = load_model(str(model), "cpu")
    held_out = FaceImages(faces, 1, pipeline.resolution)
    images = [Image.fromarray(held_out.load(index)) for index in range(faces)]
    found = reconstruct(pipeline, images, noises=("keep",), settings=EditSettings(precision="fp32"))
    least, lower, median, upper = (
        np.quantile(found.psnr["keep"], (0, 0.25, 0.5, 0.75), method="lower").round(1).tolist()
    )
    return {"least": least, "lower_quartile": lower, "median": median, "upper_quartile": upper, "images": faces}


def trained(run: Path) -> tuple[DiTiPipeline, int]:
    """The model of a finished run and 0, or that of its newest checkpoint and the images which that has seen."""
    if (run / "model").is_dir():
        return load_pipeline(str(run), "cpu"), 0
    config = from_dict(RunConfig, json.loads((run / "config.json").read_text())["config"])
    unet, scheduler = load_base(config.base_model or str(run), resolution=config.data.resolution)
    objective = build_objective(config, unet, scheduler)
    checkpoint = load_checkpoint(list_checkpoints(run / "checkpoints")[-1])
    averages = checkpoint.tensors["ema"]
    parameters = [p for module in objective.trained_modules().values() for p in module.parameters()]
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(averages[str(i)])
    pipeline = DiTiPipeline(
        unet=unet,
        encoder=objective.encoder,
        shift_decoder=objective.shift_decoder,
        scheduler=DDIMScheduler.from_config(scheduler.config),
        chunk_layout=config.layout(scheduler.config.num_train_timesteps).to_dict(),
        crop="center" if config.data.crop == "auto" else config.data.crop,
    )
    return pipeline, int(checkpoint.state["images"])


def write_card(run: Path, out: Path) -> None:
    """Write README.md, and copy the swap atlas, from what was measured of the exported model."""
    pipeline = load_pipeline(str(out), "cpu")
    record = json.loads((out / TRAINING).read_text())
    probe, evaluation = _json(run / "probe" / "report.json"), _json(run / "evaluation" / "evaluation.json")
    atlas = run / "evaluation" / "atlas-0.png"
    if atlas.is_file():
        shutil.copy(atlas, out / "atlas.png")
    counts = {name: f"{sum(p.numel() for p in n.parameters()):,}" for name, n in pipeline.networks.items()}
    shares = evaluation["models"][0]["swaps"][-1]["shares"] if evaluation else {}
    if shares:  # `diti edit` says which attributes an exchange hardly moves
        record["transfer_rates"] = {name: round(share["value"], 2) for name, share in shares.items()}
        (out / TRAINING).write_text(json.dumps(record, indent=2) + "\n")
    card = CARD.render(
        resolution=pipeline.resolution,
        parameters=counts,
        dims=pipeline.chunks.latent_dim,
        chunks=pipeline.chunks.chunks,
        config=record["config"],
        images_seen=record["images_seen"],
        versions=record["versions"],
        probe=probe,
        evaluation=evaluation,
        figures=[*_probe_figures(probe), *_edit_figures(evaluation), _psnr_figure(record["reconstruction_psnr_db"])],
        probe_rows=[[a["name"], *_score(a)] for a in probe.get("attributes", ())],
        transfer_rows=[[name, f"{s['value']:.2f}", f"{s['low']:.2f} to {s['high']:.2f}"] for name, s in shares.items()],
        unreadable=", ".join(evaluation.get("unreadable", ())) or "none",
        atlas=(out / "atlas.png").is_file(),
    )
    (out / "README.md").write_text(card.rstrip() + "\n")


def _probe_figures(probe: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for kind, metric, text in (("number", "r2", "mean R2"), ("binary", "average_precision", "mean average precision")):
        if mean := probe.get("means", {}).get(kind):
            low, high = probe["mean_intervals"][kind][metric]
            count = f"{mean['attributes']:.0f}"
            found.append((f"{text} of {count} factors, linear probe", f"{mean[metric]:.3f} [{low:.3f}, {high:.3f}]"))
    return found


def _edit_figures(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    if not evaluation:
        return []
    model = evaluation["models"][0]
    shares = [share["value"] for share in model["swaps"][-1]["shares"].values()]
    return [
        ("transfer rate of all chunks, mean of the factors", f"{np.mean(shares):.2f}"),
        ("reconstruction, 20 + 20 steps, all faces together", f"{model['reconstruction_psnr']:.1f} dB"),
    ]


def _psnr_figure(psnr: dict[str, float]) -> tuple[str, str]:
    usual = f"{psnr['lower_quartile']:.1f} to {psnr['upper_quartile']:.1f} dB"
    return f"the same, each of {psnr['images']} faces: middle half", f"{usual}, the least {psnr['least']:.1f} dB"


def _score(attribute: dict[str, Any]) -> tuple[str, str]:
    """R2 of a number, average precision of yes or no, with the interval."""
    metric = "r2" if attribute["kind"] == "number" else attribute["metric"]
    value = attribute["extras"].get(metric, attribute["value"])
    low, high = attribute["intervals"][metric]
    return f"{'R2' if metric == 'r2' else 'AP'} {value:.3f}", f"{low:.3f} to {high:.3f}"


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def main() -> None:
    """Export, then write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run, finished or not")
    parser.add_argument("--out", type=Path, default=SHIPPED_FOLDER, help="folder of the shipped model")
    parser.add_argument("--card", action="store_true", help="write the card only")
    options = parser.parse_args()
    if not options.card:
        export(options.run, options.out)
    write_card(Path(options.run), options.out)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB")
    if size > LARGEST:
        raise SystemExit(f"The shipped model may take {LARGEST / 2**20:.0f} MiB.")


if __name__ == "__main__":
    main()
