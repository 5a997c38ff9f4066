"""One checkout's side of `benchmarks.experiments.earlier_code`, which starts it with PYTHONPATH set to the checkout.

    python -P earlier_side.py save MODEL                 # a model with random weights
    python -P earlier_side.py work MODEL PICTURES        # answers a line each: run WORK, or operators WORK
    python -P earlier_side.py walk edit a.png b.png ...  # the files and functions that a command enters

It uses what both checkouts have, and nothing of `benchmarks`, which would be that of one of them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

CHUNKS = {"chunks.count": 64, "chunks.latent_dim": 256, "chunks.partition": "uniform"}
"""The same in both checkouts, whose presets differ."""
ENCODED, CALLS = 128, 2
"""Images of one call of the encoder, and calls of one piece of work."""


def config_of(preset: str, batch: int) -> Any:
    """Settings that mean the same in both checkouts."""
    from diticli.settings import build_config

    sizes = {"base.batch_size": batch, "features.batch_size": batch}
    return build_config(preset, options={**CHUNKS, **sizes, "compile": False})


class Works:
    """What can be asked for: `train PRESET BATCH STAGE`, `encode PRESET`, `files`; each made when it is first needed.

    Args:
        model: a folder with a saved model.
        pictures: a folder with pictures.
    """

    def __init__(self, model: str, pictures: str) -> None:
        self.model, self.pictures = model, pictures
        self._made: dict[str, Callable[[], object]] = {}
        self._trainers: dict[str, dict[str, Any]] = {}

    def run(self, name: str) -> float:
        """Do it once; processor seconds of all threads of this process."""
        work = self._work(name)
        before = time.process_time()
        work()
        return time.process_time() - before

    def operators(self, name: str) -> dict[str, int]:
        """Do it once; how often PyTorch ran each operator, by shapes and strides of its arguments."""
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        found: Counter[str] = Counter()

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                shapes = [f"{x.dtype}{list(x.shape)}{x.stride()}" for x in tree_leaves(args) if hasattr(x, "stride")]
                found[" ".join([str(function), *shapes])] += 1
                return function(*args, **(kwargs or {}))

        work = self._work(name)
        work()  # what is made once is made by now
        with Count():
            work()
        return dict(found)

    def _work(self, name: str) -> Callable[[], object]:
        if name not in self._made:
            kind, *words = name.split()
            make = {"train": self._training, "encode": self._encoding, "files": self._files}[kind]
            self._made[name] = make(*words)
        return self._made[name]

    def _training(self, preset: str, batch: str, stage: str) -> Callable[[], object]:
        """Three steps of a stage with their inputs, as a run takes them."""
        from diticli.training import plan

        plan.WARM_STEPS, plan.TIMED_STEPS = 2, 1
        time_steps, setting = plan._time_steps, f"{preset} {batch}"
        if setting not in self._trainers:
            self._trainers[setting] = trainers(config_of(preset, int(batch)))
        trainer = self._trainers[setting][stage]
        others = [0.0] * (len(inspect.signature(time_steps).parameters) - 1)

        def steps() -> None:
            trainer.step = 0
            time_steps(trainer, *others)

        return steps

    def _encoding(self, preset: str) -> Callable[[], object]:
        """Images that lie in memory."""
        import torch

        from diticli.models.build import build_encoder

        try:
            from diticli.encoding.batch_encoder import BatchEncoder
        except ModuleNotFoundError:  # its place in commit 0c98ef0
            from diticli.analysis.batch_encoder import BatchEncoder  # type: ignore[import-not-found,no-redef]
        torch.manual_seed(0)
        config = config_of(preset, 32)
        images = torch.randint(0, 256, (ENCODED, 3, *[config.data.resolution] * 2), dtype=torch.uint8)
        encoder = BatchEncoder(build_encoder(config))

        def encode() -> None:
            for _ in range(CALLS):
                encoder(images)

        return encode

    def _files(self) -> Callable[[], object]:
        """A folder of pictures to a feature file."""
        from diticli.data.images import open_images

        try:
            from diticli.encoding.encode import encode_with
        except ModuleNotFoundError:
            from diticli.analysis.encode import encode_with  # type: ignore[import-not-found,no-redef]
        model = load(self.model)
        source = open_images([self.pictures], model.resolution)
        out = Path(tempfile.mkdtemp(), "feats.npy")
        return functools.partial(encode_with, model, source, out, resume=False)


def trainers(config: Any) -> dict[str, Any]:
    """The trainers of both stages, by its name, as `diti train --dry-run` builds them."""
    from diticli.training import plan

    found: dict[str, Any] = {}

    def keep(trainer: Any, *_: object) -> tuple[float, float]:
        found[trainer.stage.name] = trainer
        return 1.0, 1.0

    real, plan._time_steps = plan._time_steps, keep
    try:
        plan.make_plan(config)
    finally:
        plan._time_steps = real
    return found


def load(model: str) -> Any:
    """The saved model, as commands read it."""
    try:
        from diticli.models.load import load_model
    except ModuleNotFoundError:
        from diticli.models.locate import load_model  # type: ignore[import-not-found,no-redef]
    return load_model(model)


def save(folder: str) -> None:
    """A faces32 model with random weights."""
    from diffusers import DDIMScheduler

    from diticli.models.build import build_encoder, build_unet
    from diticli.models.pipeline import DiTiPipeline
    from diticli.models.shift_decoder import ShiftDecoder

    config = config_of("faces32", 32)
    unet, layout = build_unet(config.unet, config.data.resolution), config.layout()
    shift = ShiftDecoder.for_unet(unet, layout.latent_dim)
    DiTiPipeline(unet, build_encoder(config), shift, DDIMScheduler(), layout.to_dict()).save_pretrained(folder)


def walk(arguments: list[str]) -> dict[str, int]:
    """Run a command of `diti` in this thread and count what it enters of the package.

    Returns:
        files: distinct ones in which a function was entered.
        functions: distinct ones; bodies of modules and classes are none.
        deepest: most functions of the package that were under way at one moment, in calls of each other.
    """
    seen: set[tuple[str, str]] = set()
    depth = deepest = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal depth, deepest
        code = frame.f_code
        _, inside, name = code.co_filename.partition("/diticli/")
        function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        if not (inside and function and event in ("call", "return")):
            return
        depth += 1 if event == "call" else -1
        deepest = max(deepest, depth)
        seen.add((name, code.co_qualname))

    from diticli.__main__ import main

    sys.argv = ["diti", *arguments]
    sys.setprofile(note)
    try:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            main()
    finally:
        sys.setprofile(None)
    return {"files": len({name for name, _ in seen}), "functions": len(seen), "deepest": deepest}


def main() -> None:
    """As the module's text says."""
    import diticli

    kind, *words = sys.argv[1:]
    if kind == "save":
        save(*words)
        return
    if kind == "walk":
        print(json.dumps({"of": diticli.__file__, **walk(words)}))
        return
    works = Works(*words)
    print(json.dumps({"of": diticli.__file__}), flush=True)
    for line in sys.stdin:
        method, _, name = line.strip().partition(" ")
        print(json.dumps(getattr(works, method)(name)), flush=True)


if __name__ == "__main__":
    main()
