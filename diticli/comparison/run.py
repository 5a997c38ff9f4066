"""The comparison itself: encode, probe, edit, each step kept; then all scores at once.

result = compare(parse_entries(["runs/demo", "runs/pdae"]), CompareSettings(), Path("comparison"))
result.scores["pdae"].means["number"]["r2"]
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diticli.comparison.benchmark import Benchmark, BenchmarkStore, summarise
from diticli.comparison.encoding import FeatureStore
from diticli.comparison.entries import Entries, Entry, describe_sizes
from diticli.comparison.entry_specs import EntrySpec
from diticli.comparison.images import ComparedImages
from diticli.comparison.pictures import ComparedPair, PictureStore
from diticli.comparison.probes import Probed, ProbeStore
from diticli.comparison.protocol import Protocol, make_protocol
from diticli.comparison.scores import EntryScores, baselines_ahead, score_all
from diticli.comparison.settings import CompareSettings
from diticli.comparison.swaps import SwapStore
from diticli.distributed import PeerMonitor, Rank, sharing_work
from diticli.files import FolderLock, refuse_links
from diticli.models.device import resolve_device
from diticli.probing import linear
from diticli.progress import Reporter, SilentReporter
from diticli.reading import read_regular

FEATURES, RESULTS = "features", "results"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        entries: in the order of the table; the first is what the others are compared with.
        settings: of the comparison.
        protocol: images, labels and split, the same for all.
        scores: of each entry, by name.
        probed: their probes, by name.
        swaps: transfer rates of exchanged chunks, by name; `diticli.evaluation.scores.to_json` of a `Faithfulness`.
        pictures: by name, one row a pair.
        pairs: names of the images of each pair.
        features: where each entry's features are.
        notes: what a reader of the table should know.
        benchmark: disentanglement over several seeds, where it was asked for.
        data: what the images are, and their fingerprint.
    """

    entries: tuple[Entry, ...]
    settings: CompareSettings
    protocol: Protocol
    scores: dict[str, EntryScores]
    probed: dict[str, Probed]
    swaps: dict[str, dict[str, Any]]
    pictures: dict[str, list[ComparedPair]]
    pairs: list[tuple[str, str]]
    features: dict[str, str]
    notes: tuple[str, ...]
    data: dict[str, Any]
    benchmark: Benchmark | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedEntry:
    """What one entry would take.

    Attributes:
        entry: what is compared.
        images: to be encoded; 0 when its features are here.
    """

    entry: Entry
    images: int


def plan(
    specs: Sequence[EntrySpec], settings: CompareSettings, out: Path, *, device: str | None = None
) -> list[PlannedEntry]:
    """What `compare` would do; writes nothing.

    Raises:
        DiTiError: as `compare`, for whatever can be known beforehand.
    """
    rank = Rank.from_environment()
    own = resolve_device(rank.device(device))
    entries = Entries(specs, pixel_side=settings.pixel_side, device=own)
    images = ComparedImages(settings, value_range=entries.value_range)
    store = FeatureStore(out / FEATURES, images, entries, settings, rank=rank, device=own, reporter=SilentReporter())
    images.labels(images.names) if settings.data else None
    return [PlannedEntry(entry=s, images=0 if store.has(s) else len(images.names)) for s in entries.all]


def compare(
    specs: Sequence[EntrySpec],
    settings: CompareSettings,
    out: Path,
    *,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Comparison | None:
    """Encode, probe and score all entries; what is done already is taken from `out`.

    Started by `torchrun` or `accelerate launch`, the processes share the images to encode, and then the entries.

    Args:
        specs: of `parse_entries`.
        settings: the protocol.
        out: folder of features and results; the same call goes on where an earlier one stopped.
        device: cpu, cuda or cuda:N; None takes a GPU where there is one.
        reporter: receiver of progress.

    Returns:
        What was found; None in all processes but the first.

    Raises:
        DiTiError: a run, features, images or labels that cannot be used; each says what to do.
    """
    rank = Rank.from_environment()
    own = resolve_device(rank.device(device))
    reporter = reporter if reporter and rank.is_main else SilentReporter()
    with contextlib.ExitStack() as held:
        peers = held.enter_context(sharing_work(reporter))
        if rank.is_main:
            refuse_links(out, below=(FEATURES, RESULTS))
            held.enter_context(FolderLock(out))
        peers.wait()  # before anything is written: the first process may have been refused
        return _Run(specs, settings, out, peers, own, reporter).run()


class _Run:
    """One process's part in a comparison."""

    def __init__(
        self,
        specs: Sequence[EntrySpec],
        settings: CompareSettings,
        out: Path,
        peers: PeerMonitor,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.settings, self.out, self.peers, self.say = settings, out, peers, reporter
        self.entries = Entries(specs, pixel_side=settings.pixel_side, device=device)
        self.images = ComparedImages(settings, reporter, value_range=self.entries.value_range)
        if settings.data:
            self.images.labels(self.images.names)  # what is wrong with them shows before hours of work
        self.store = FeatureStore(
            out / FEATURES, self.images, self.entries, settings, rank=peers.rank, device=device, reporter=reporter
        )
        self.editors = [s for s in self.entries.all if s.edits and settings.data]

    def run(self) -> Comparison | None:
        notes = [*filter(None, [describe_sizes(self.entries.all)]), *self._overlaps(), *self._reduced()]
        for note in notes:
            self.say.note(note)
        self._encode()
        protocol = self._protocol()
        for note in (protocol.describe(), *protocol.notes):
            self.say.note(note)
        notes += protocol.notes
        probes = ProbeStore(self.out / RESULTS, self.store, protocol, self.settings)
        self._each("Probing", self.entries.all, probes.has, probes.make)
        benchmark = self._benchmark(protocol)
        if benchmark is not None:
            self._each("Benchmark of", self.entries.all, benchmark.has, benchmark.make)
        pictures = self._pictures(protocol)
        self._each("Pictures of", self.editors, pictures.has, pictures.make)
        swaps = SwapStore(self.out / RESULTS, self.images, self.entries, self.settings) if self.settings.edits else None
        if swaps is not None:
            self._each("Exchanging chunks of", self.editors, swaps.has, swaps.make)
        if not self.peers.rank.is_main:
            return None
        result = self._result(protocol, probes, pictures, swaps, benchmark, notes)
        return result if benchmark is None else replace(result, benchmark=self._summary(benchmark))

    def _encode(self) -> None:
        missing: dict[Path, Entry] = {}  # PCA has the features of raw pixels
        for entry in self.entries.all:
            if not self.store.has(entry):
                missing.setdefault(self.store.path(entry), entry)
        for number, entry in enumerate(missing.values(), 1):
            self.say.note(f"Encoding {number} of {len(missing)}: {entry.name}.")
            self.store.encode(entry)
        self.peers.wait()

    def _protocol(self) -> Protocol:
        features = {entry.name: self.store.read(entry) for entry in self.entries.all}
        return make_protocol(features, {s.name: s for s in self.entries.all}, self.images, self.settings.seed)

    def _benchmark(self, protocol: Protocol) -> BenchmarkStore | None:
        if not (count := self.settings.benchmark):
            return None
        return BenchmarkStore(
            self.out / RESULTS, self.store, protocol, seed=self.settings.seed, count=count, entries=self.entries.all
        )

    def _summary(self, store: BenchmarkStore) -> Benchmark:
        found = summarise(store, self.entries.all)
        for note in found.notes:
            self.say.note(note)
        return found

    def _pictures(self, protocol: Protocol) -> PictureStore:
        """Of test images, which neither training of the probe nor its choices saw."""
        test = protocol.images[protocol.split.test].tolist()
        count = min(self.settings.shown, len(test) // 2) if self.editors else 0
        pairs = [(test[2 * i], test[2 * i + 1]) for i in range(count)]
        return PictureStore(self.out / RESULTS, self.images, self.entries, pairs, self.settings.steps)

    def _each(
        self,
        what: str,
        entries: Sequence[Entry],
        done: Callable[[Entry], bool],
        make: Callable[[Entry, Reporter], None],
    ) -> None:
        """This process's share of the entries; then wait for the others'."""
        for entry in entries[self.peers.rank.index :: self.peers.rank.count]:
            if not done(entry):
                self.say.note(f"{what} {entry.name}.")
                make(entry, self.say)
        self.peers.wait()

    def _overlaps(self) -> list[str]:
        found = self.images.fingerprint()
        seen = [s.name for s in self.entries.all if found is not None and _trained_on(s, found)]
        if not seen:
            return []
        return [f"Trained on these very images: {', '.join(seen)}. Scores on held-out images are the ones to trust."]

    def _reduced(self) -> list[str]:
        """Raw pixels of large images, said where they are."""
        pixels = [s for s in self.entries.all if s.spec.kind in ("pixels", "pca")]
        largest = max((s.resolution for s in self.entries.all), default=0)
        if not pixels or pixels[0].resolution == largest:
            return []
        side = pixels[0].resolution
        return [f"Raw pixels and PCA see images reduced to {side}x{side}."]

    def _result(
        self,
        protocol: Protocol,
        probes: ProbeStore,
        pictures: PictureStore,
        swaps: SwapStore | None,
        benchmark: BenchmarkStore | None,
        notes: list[str],
    ) -> Comparison:
        probed = {entry.name: probes.read(entry) for entry in self.entries.all}
        said = set() if benchmark is None else {s.name for s in self.entries.all if benchmark.measurable(s)}
        unfinished = _not_converged({name: item.report for name, item in probed.items()})
        chosen = [item.note for name, item in probed.items() if item.note and name not in said]
        for note in chosen:
            self.say.note(note)
        for note in unfinished:
            self.say.warn(note)
        self.say.start("Resampling test images", None)
        scores = score_all(probed, protocol, seed=self.settings.seed)
        self.say.finish()
        built_in = [s.name for s in self.entries.all if not s.spec.source]
        ahead = baselines_ahead(scores, built_in, len(protocol.split.test))
        if ahead:
            self.say.note(ahead)
        swapped = {s.name: swaps.read(s, self.say) for s in self.editors} if swaps is not None else {}
        names = self.images.names if self.settings.data else []
        return Comparison(
            entries=self.entries.all,
            settings=self.settings,
            protocol=protocol,
            scores=scores,
            probed=probed,
            swaps=swapped,
            pictures={s.name: pictures.read(s, self.say) for s in self.editors},
            pairs=[(names[a], names[b]) for a, b in pictures.pairs],
            features={s.name: str(self.store.path(s)) for s in self.entries.all},
            notes=(*notes, *chosen, *unfinished, *filter(None, [ahead])),
            data={"name": self.images.title, "fingerprint": self.images.fingerprint()},
        )


def _not_converged(reports: Mapping[str, dict[str, Any]]) -> list[str]:
    """A line for each entry with fits that stopped at their limit of iterations."""
    found = []
    for entry, report in reports.items():
        if names := [item["name"] for item in report["attributes"] if not item["converged"]]:
            found.append(
                f"{entry}: not converged within {linear.MAX_ITERATIONS} iterations: {', '.join(names)}. Their "
                "scores may be off: look for features of very unequal size or outliers."
            )
    return found


def _trained_on(entry: Entry, fingerprint: dict[str, Any]) -> bool:
    """Whether the run directory of a model says so."""
    if entry.spec.kind != "model":
        return False
    folder = Path(entry.spec.source)
    for config in (folder / "config.json", folder.parent / "config.json"):
        try:
            trained = dict(json.loads(read_regular(config))["data"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        keys = ("kind", "seed") if fingerprint.get("kind") == "faces" else ("kind", "sha256")
        return all(key in trained and trained[key] == fingerprint.get(key) for key in keys)
    return False
