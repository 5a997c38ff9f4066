"""Many pairs at once: batches full across pairs, memory bounded, finished pairs kept, failures set aside.

report = edit_many(pipeline, read_pairs(Path("pairs.csv")), Path("edits"), options=ManyOptions(...))

Pairs are taken a window at a time. All images of a window are inverted together and all its edits decoded
together; a pair is written as soon as its last picture is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from diticli.editing.engine import (
    EditablePipeline,
    ImageSampler,
    Job,
    Outcome,
    batch_of,
    decode_all,
    invert_all,
    model_name,
    settled,
)
from diticli.editing.inputs import read_source, source_name
from diticli.editing.many_files import (
    ManyOptions,
    PlannedPair,
    TablePlan,
    plan_pairs,
    prepare_folder,
    write_failed,
    write_pair,
)
from diticli.editing.pair import pair_jobs, pair_result, to_decode
from diticli.editing.settings import EditSettings
from diticli.editing.table import PairRow
from diticli.errors import DiTiError, MachineError
from diticli.models.device import resolve_precision
from diticli.progress import Reporter, SilentReporter
from diticli.sampling.defaults import DEFAULT_PRECISION

_READERS = 4


class ManyPipeline(EditablePipeline, Protocol):
    """What editing many pairs needs of a `DiTiPipeline`."""

    @property
    def resolution(self) -> int:
        """R."""

    @property
    def reading(self) -> dict[str, Any]:
        """How pictures are read for it: crop, value_range and channels."""


@dataclass(frozen=True, kw_only=True)
class ManyReport:
    """What became of the pairs.

    Attributes:
        written: names of the pairs edited now.
        skipped: names of those that were finished before.
        failed: (pair, reason) of those that could not be edited.
        psnr: of the reconstructions in dB, by image, of the pairs edited now.
        steps_run: of the inversion and of the decoding, which may differ from those asked for.
    """

    written: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: tuple[tuple[PairRow, str], ...]
    psnr: Mapping[str, float]
    steps_run: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON form: names, and the failures by name."""
        failed = {row.name: reason for row, reason in self.failed}
        return {
            "written": list(self.written),
            "skipped": list(self.skipped),
            "failed": failed,
            "invert_steps_run": self.steps_run[0],
            "decode_steps_run": self.steps_run[1],
        }


def edit_many(
    pipeline: ManyPipeline,
    rows: Sequence[PairRow],
    out: Path,
    *,
    options: ManyOptions | None = None,
    reporter: Reporter | None = None,
) -> ManyReport:
    """Edit every pair and write OUT/NAME.png, skipping those whose file was made from the same images and settings.

    What cannot be edited is listed in OUT/failed.csv with the reason. After an interruption the same call goes on.

    Args:
        pipeline: a `DiTiPipeline`.
        rows: the pairs, of `read_pairs`.
        out: folder, made when missing.
        options: chunk sets, alphas, settings and outputs of the pairs that name none.
        reporter: receives every picture inverted or decoded.

    Raises:
        ChunkError, ConfigError: for options that suit no pair, e.g. more steps than the model has timesteps.
        DataError: when the folder cannot be written.
    """
    options, reporter = options or ManyOptions(), reporter or SilentReporter()
    prepare_folder(out)
    plan = plan_pairs(rows, out, pipeline.chunks, pipeline.model_hash, options)
    options = replace(options, settings=_compiled(pipeline, plan, options.settings))
    sampler = pipeline.sampler(**options.settings.sampler_kwargs())
    failed = list(plan.failed)
    reporter.start("Editing", sum(pair.cost for pair in plan.todo), unit="pictures")
    written: list[str] = []
    psnr: dict[str, float] = {}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="edit") as pool:
        for pairs in plan.windows:
            for pair, reason in _edit_window(pipeline, sampler, plan, pairs, options, pool, reporter, psnr):
                if reason is None:
                    written.append(pair.row.name)
                else:
                    failed.append((pair.row, reason))
                    reporter.warn(f"{pair.row.name}: {reason}")
    reporter.finish()
    write_failed(failed, out)
    return ManyReport(
        written=tuple(written),
        skipped=plan.finished,
        failed=tuple(failed),
        psnr=psnr,
        steps_run=options.settings.steps_run(pipeline.chunks.timesteps),
    )


def _edit_window(
    pipeline: ManyPipeline,
    sampler: ImageSampler,
    plan: TablePlan,
    pairs: Sequence[PlannedPair],
    options: ManyOptions,
    pool: ThreadPoolExecutor,
    reporter: Reporter,
    psnr: dict[str, float],
) -> Iterator[tuple[PlannedPair, str | None]]:
    """Each pair once it is written (None) or has failed (the reason); `psnr` gets those of the reconstructions."""
    images, unreadable = _read_images(pipeline, pairs, options, pool)
    ready = [pair for pair in pairs if pair.row.a in images and pair.row.b in images]
    for pair in pairs:
        if pair not in ready:
            reporter.advance(pair.cost)
            yield pair, unreadable.get(pair.row.a) or unreadable[pair.row.b]
    if not ready:
        return
    sources = list(dict.fromkeys(source for pair in ready for source in (pair.row.a, pair.row.b)))
    x0 = pipeline.preprocess([images[source] for source in sources])
    latents = invert_all(pipeline, sampler, x0, options.settings)
    reporter.advance(2 * len(ready))
    place = {source: i for i, source in enumerate(sources)}
    places = [(place[pair.row.a], place[pair.row.b]) for pair in ready]
    batch = batch_of(pipeline, latents.x0, options.settings)

    def jobs() -> Iterator[Job]:
        for pair, at in zip(ready, places, strict=True):
            edits = to_decode(pair.edits, options.settings)
            yield from pair_jobs(latents, at, edits, pipeline.chunks, options.settings)

    decoded = decode_all(sampler, jobs(), options.settings, batch)
    writing = []
    for pair, at in zip(ready, places, strict=True):
        pictures = dict(islice(decoded, pair.pictures))
        result = pair_result(
            pair.edits,
            Outcome.from_tensors(latents.x0[list(at)], latents.z[list(at)], pictures),
            names=(source_name(pair.row.a), source_name(pair.row.b)),
            layout=pipeline.chunks,
            model_hash=plan.model_hash,
            settings=settled(pipeline, options.settings),
            model_name=model_name(pipeline),
        )
        psnr |= zip((pair.row.a, pair.row.b), result.psnr, strict=True)
        writing.append((pair, pool.submit(write_pair, result, pair, plan, options)))
        reporter.advance(pair.pictures, pair=pair.row.name)
    for pair, future in writing:
        try:
            future.result()
        except DiTiError as error:
            yield pair, str(error)
        else:
            yield pair, None


def _compiled(pipeline: ManyPipeline, plan: TablePlan, settings: EditSettings) -> EditSettings:
    """The settings, with the compilation decided by how much there is to sample."""
    like = torch.zeros(1, pipeline.reading["channels"], pipeline.resolution, pipeline.resolution)
    batch = batch_of(pipeline, like, settings)
    invert, decode = plan.pictures
    inverting, decoding = settings.steps_run(pipeline.chunks.timesteps)
    steps = (invert * inverting + decode * decoding) // batch
    device = getattr(pipeline, "device", like.device)
    least = _compiled_from(pipeline, batch, settings) if device.type == "cuda" and settings.compile is None else None
    return replace(settings, compile=settings.should_compile(device.type, steps, least))


def _compiled_from(pipeline: ManyPipeline, batch: int, settings: EditSettings) -> float | None:
    """Steps from which compiling was measured to pay on this GPU; None where nothing is known."""
    from diticli.tuning.compiling import compiled_from, sampling_site

    unet, decoder = (getattr(pipeline, name, None) for name in ("unet", "shift_decoder"))
    if unet is None or decoder is None:
        return None
    precision = resolve_precision(settings.precision or DEFAULT_PRECISION[settings.solver], unet.device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return compiled_from(sampling_site(unet, decoder, batch, pipeline.resolution, dtype), unet.device)


def _read_images(
    pipeline: ManyPipeline, pairs: Sequence[PlannedPair], options: ManyOptions, pool: ThreadPoolExecutor
) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """Images by source, and why others cannot be read."""

    def read(source: str) -> Image.Image | DiTiError:
        try:
            return read_source(source, pipeline.resolution, seed=options.settings.seed, **pipeline.reading)
        except MachineError:  # says nothing of this pair
            raise
        except DiTiError as error:
            return error

    sources = list(dict.fromkeys(source for pair in pairs for source in (pair.row.a, pair.row.b)))
    images, unreadable = {}, {}
    for source, found in zip(sources, pool.map(read, sources), strict=True):
        if isinstance(found, DiTiError):
            unreadable[source] = str(found)
        else:
            images[source] = found
    return images, unreadable
