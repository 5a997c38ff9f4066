"""What `diti demo` measured, and its page: edits first, then what chunks are, then the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diticli.data.faces import FACTORS
from diticli.editing.contact_sheet import edit_strip, pair_sheet
from diticli.editing.pair import EditResult
from diticli.pictures.charts import bar_table_chart
from diticli.pictures.report import Cell, Section, write_report
from diticli.training.advice import short_training
from diticli.training.rundir import RunDirectory, versions

SHIPPED_MODEL, FRESH = "shipped model", "new model"
PIXELS, UNTRAINED = "raw pixels", "untrained encoder"
_ABOUT = {
    SHIPPED_MODEL: "It comes with diti, trained for hours.",
    FRESH: "Trained by this run, just now.",
    UNTRAINED: "The network before any training; the difference to it is what training added.",
    PIXELS: "No features at all: the 3,072 numbers of the picture itself.",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model on held-out faces.

    Attributes:
        model: what it was loaded as.
        chunks: number of chunks.
        dims: number of features.
        psnr: dB of reconstructions through inversion and decoding, over all pixels of all reconstructed faces.
        edits: of each pair, each stage of its chunks exchanged, and all chunks.
        trained_images: that stage 2 saw, as planned; None where nobody knows.
    """

    model: str
    chunks: int
    dims: int
    psnr: float
    edits: tuple[EditResult, ...]
    trained_images: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the pictures."""
        facts = ("model", "chunks", "dims", "psnr", "trained_images")
        return {name: getattr(self, name) for name in facts}


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        run: run directory of the training.
        report: the HTML page.
        pictures: edits by the first model that was there.
        models: "shipped model" and "new model", those that there are.
        scores: features -> factor -> R2 (numbers) or average precision (yes or no).
        means: features -> mean R2 over the numbers, mean average precision over the others.
        held_out: faces that were probed.
        steps: of inversion and of decoding.
        seconds: what took how long.
    """

    run: Path
    report: Path
    pictures: tuple[Path, ...]
    models: dict[str, Measured]
    scores: dict[str, dict[str, float]]
    means: dict[str, dict[str, float]]
    held_out: int
    steps: int
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "run": str(self.run),
            "report": str(self.report),
            "pictures": [str(path) for path in self.pictures],
            "models": {name: measured.to_dict() for name, measured in self.models.items()},
            "scores": self.scores,
            "means": self.means,
            "held_out": self.held_out,
            "steps": self.steps,
            "seconds": self.seconds,
            "versions": versions(),
        }


def write_demo_report(result: DemoResult) -> Path:
    """Write `result.report`."""
    first = next(iter(result.models))
    sections = [
        *_edit_sections(result, first),
        _chunks_section(result, first),
        _reading_section(result),
        _reconstruction_section(result),
        *(section for name in result.models if name != first for section in _edit_sections(result, name)),
        *_training_sections(result),
        _next_section(result),
    ]
    return write_report(result.report, title="What diti does: a demonstration", sections=sections)


def _edit_sections(result: DemoResult, name: str) -> list[Section]:
    text = (
        "Two cartoon faces that the model never saw, A and B. Each row takes one range of the features (chunks) of "
        "one face and puts it into the other: on the left A with a part of B, on the right B with a part of A. The "
        "last row exchanges everything that the features hold."
    )
    return [
        Section(
            title=f"Edits by the {name}, pair {i + 1}",
            text=text if i == 0 and name == SHIPPED_MODEL else "",
            picture=strip_of(edit),
            caption=f"Chunks exchanged between {edit.names[0]} and {edit.names[1]}",
        )
        for i, edit in enumerate(result.models[name].edits)
    ]


def _chunks_section(result: DemoResult, name: str) -> Section:
    model = result.models[name]
    return Section(
        title="What the chunks are",
        text="A diffusion model learns to remove noise from pictures. With a little noise, only fine details are gone "
        "(freckles); with much noise, large things are gone too (where the face is, the colour of the background). How "
        "much noise there is, is called the timestep t: 0 is the clean picture, 1000 is noise alone."
        "\n\nThe features of a picture are a list of numbers, cut into chunks, one chunk for each range of timesteps. "
        "In training, the chunks up to a timestep help the diffusion model to restore what the noise of that timestep "
        "hides. So a chunk learns what noise hides in its range, as far as earlier chunks do not hold it yet."
        f"\n\nHere {model.dims} numbers are cut into {model.chunks} chunks. The captions of the pictures above name "
        "chunks and their timesteps. In practice the earliest chunks with room take most of it; the documentation "
        "(docs/modularity.md) says how far chunks come apart, and how to have them apart further.",
    )


def _reading_section(result: DemoResult) -> Section:
    names = [f"{factor.name} ({'R2' if factor.kind == 'number' else 'AP'})" for factor in FACTORS]
    title = "Probe scores of held-out faces: 1 is perfect"
    series = {kind: [scores[factor.name] for factor in FACTORS] for kind, scores in result.scores.items()}
    bars = bar_table_chart(
        RunDirectory(result.run).samples / "probe.png", names, series, title=title, baselines=(UNTRAINED, PIXELS)
    )
    numbers = sum(factor.kind == "number" for factor in FACTORS)
    kinds = list(result.scores)
    rows: list[list[Cell]] = [
        [f.name, f.description, "R2" if f.kind == "number" else "AP", *(result.scores[k][f.name] for k in kinds)]
        for f in FACTORS
    ]
    rows.append([f"mean of {numbers}", "", "R2", *(result.means[k]["r2"] for k in kinds)])
    rows.append([f"mean of {len(FACTORS) - numbers}", "", "AP", *(result.means[k]["average_precision"] for k in kinds)])
    about = " ".join(f"{name[0].upper()}{name[1:]}: {_ABOUT[name]}" for name in kinds)
    if (fresh := result.models.get(FRESH)) and (short := short_training(fresh.trained_images, faces=True)):
        about += f"\n\nDo not expect much of the new model. {short}"
    return Section(
        title="What can be read from the features",
        text=f"Each face was drawn from 13 numbers, so the truth is known. For {result.held_out:,} faces that no "
        "training saw, the simplest of all predictors (a weighted sum, called a linear probe) predicts each number "
        "from the features. It learns on 70 % of the faces and is scored on others."
        "\n\nFor numbers, such as the colour of the hair, the score is the part of the differences between faces "
        "that it predicts (R2): 1 is all, 0 is none. For yes or no, such as a hat, it is the average precision (AP): "
        f"1 is without error, 0.5 is guessing.\n\n{about}",
        picture=bars,
        caption=title,
        table=(["what", "meaning", "score", *kinds], rows),
    )


def _reconstruction_section(result: DemoResult) -> Section:
    rows: list[list[Cell]] = [
        [name, f"{measured.psnr:.1f}", f"{255 * 10 ** (-measured.psnr / 20):.2f}"]
        for name, measured in result.models.items()
    ]
    return Section(
        title="How well pictures come back",
        text=f"An edit turns a picture into noise step by step and back again ({result.steps} steps each way). With "
        "nothing exchanged the same picture should come back. The usual measure is the PSNR in decibels (dB), higher "
        "is better; the last column says it as a typical error of a pixel that has 256 levels of brightness.",
        table=(["model", "PSNR in dB", "error in levels of 255"], rows),
    )


def _training_sections(result: DemoResult) -> list[Section]:
    samples = RunDirectory(result.run).samples
    rows: list[list[Cell]] = [[name, f"{seconds:.1f}"] for name, seconds in result.seconds.items()]
    found = [
        Section(
            title="What took how long",
            text="Seconds on this machine.",
            table=(["part", "seconds"], rows),
        )
    ]
    if drawn := _newest(samples, "base-0*.png"):
        found.append(
            Section(title="The base", text="Faces drawn by the diffusion model of stage 1 from noise.", picture=drawn)
        )
    if shown := _newest(samples, "features-0*.png"):
        text = (
            "Training faces; what their features alone give back, from random noise (the row that shows what features "
            "hold); and with the noise that belongs to each picture, which holds the rest."
        )
        found.append(Section(title="What the features give back", text=text, picture=shown))
    return found


def _next_section(result: DemoResult) -> Section:
    return Section(
        title="Go on",
        text=f"Commands take the newest model under ./runs, which now is {result.run}; --model shipped takes the one "
        "that comes with diti.",
        code="diti edit faces:3 faces:8 --chunks 10-20 --model shipped -o edit.png\n"
        "diti encode faces:1000:2 -o feats.npy\n"
        "diti train --data ./your-photos --minutes 60\n"
        "diti evaluate shipped",
    )


def _newest(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    return found[-1] if found else None


def strip_of(edit: EditResult) -> Image.Image:
    """A picture of one pair: a row for each set of chunks, A with B's chunks on the left, B with A's on the right."""
    return edit_strip(pair_sheet(edit))
