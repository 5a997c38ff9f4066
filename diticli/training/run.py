"""A whole training run: images, base, features, finished model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from diticli.config import RunConfig
from diticli.distributed import PeerMonitor, Rank
from diticli.files import FolderLock
from diticli.models.base_files import load_base
from diticli.models.build import build_unet, new_scheduler
from diticli.models.device import global_generators_kept, gpu_convolutions, on_device
from diticli.models.identity import weights_digest
from diticli.models.largest_batch import release_memory
from diticli.models.pipeline import DDIMScheduler, DDPMScheduler, DiTiPipeline
from diticli.models.reconstruction_gap import GapCurve
from diticli.models.unet import UNet
from diticli.models.variables import check_variables
from diticli.progress import Reporter, SilentReporter
from diticli.schedule import NoiseSchedule
from diticli.training import samples
from diticli.training.accelerator import make_accelerator, resolve
from diticli.training.advice import budget_warnings, few_pictures
from diticli.training.base_gap import read_gap, write_gap
from diticli.training.batch_fit import fit_batches
from diticli.training.batches import fold_seed
from diticli.training.budget import TimeBudget, fit_to_minutes
from diticli.training.checkpoint import drop_other_stages, write_json
from diticli.training.content import content_digest
from diticli.training.failures import os_errors_as_typed
from diticli.training.images import RunImages, compare_skipped, looks_grey, open_source, prepare_images
from diticli.training.kernels import choose_kernels
from diticli.training.loop import StageTrainer, run_stage
from diticli.training.metrics_log import MetricsLogger
from diticli.training.objectives import NoiseObjective, Objective
from diticli.training.rundir import RunDirectory, identity_of_run
from diticli.training.stage import Stage
from diticli.training.stage_two import STAGE, build_objective, step_views
from diticli.training.stopping import StopRequest


def train(
    config: RunConfig,
    out: Path,
    *,
    reporter: Reporter | None = None,
    started: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Path:
    """Train a model into the run directory `out`, or go on with a run that was stopped there.

    Args:
        config: settings.
        out: run directory.
        reporter: receiver of progress.
        started: when the budget of `config.minutes` began, by `clock`. Default: now.
        clock: seconds.

    Returns:
        The folder of the finished pipeline.

    Raises:
        DiTiError: for settings, images, bases and checkpoints that cannot be used.
        TrainingInterrupted: after Ctrl-C or SIGTERM; calling again goes on exactly where it stopped.
    """
    reporter, started = reporter or SilentReporter(), started or clock()
    RunDirectory(out).refuse_links()  # before anything is read through one
    config, budget = RunDirectory(out).compiled_as_begun(config, resolve(config)), None
    if config.fit_batch:
        config = fit_batches(config, out, reporter=reporter)
    if config.minutes:
        config, budget = fit_to_minutes(config, out, started=started, reporter=reporter, clock=clock)
        for warning in () if RunDirectory(out).begun else budget_warnings(config):
            reporter.warn(warning)
    accelerator = make_accelerator(config, reporter)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    check_variables(accelerator.device, dtype)
    with (
        on_device(accelerator.device),
        gpu_convolutions(accelerator.device, dtype, timed=True),
        global_generators_kept(accelerator.device),
        PeerMonitor(Rank.from_accelerator(accelerator), accelerator.device, reporter) as peers,
        os_errors_as_typed(out),
    ):
        _train(config, RunDirectory(out), accelerator, peers, reporter, budget)
    return out / "model"


def _train(
    config: RunConfig,
    run: RunDirectory,
    accelerator: Accelerator,
    peers: PeerMonitor,
    reporter: Reporter,
    budget: TimeBudget | None,
) -> None:
    """All of a run; only the main process speaks and writes."""
    source = open_source(config, reporter if accelerator.is_main_process else None)
    config = replace(config, data=replace(config.data, crop=source.crop, value_range=source.value_range))
    fingerprint = source.fingerprint()
    if content := content_digest(source):
        fingerprint = {**fingerprint, "content": content}
    main = accelerator.is_main_process
    reporter = reporter if main else SilentReporter()
    side = config.data.resolution
    given = None
    if config.base_model:
        given = load_base(config.base_model, resolution=side, channels=config.data.channels, say=reporter.note)
    if given is not None:
        fingerprint = {**fingerprint, "base": weights_digest({"unet": given[0]})}
    with contextlib.ExitStack() as held:
        if main:
            run.refuse_other_files()
            held.enter_context(FolderLock(run.root))
            was_finished = run.finished
            if resumed := run.open(config, fingerprint):
                begin = "Already finished:" if run.finished else "Going on with"
                begin = "Extending" if was_finished and not run.finished else begin
                reporter.note(f"{begin} the run in {run.root}.")
            elif few := few_pictures(config, len(source)):
                reporter.warn(few)
            if not resumed and config.data.channels == 3 and not config.base_model and looks_grey(source):
                reporter.note("The pictures are grey: --channels 1 trains a smaller network on one channel.")
        accelerator.wait_for_everyone()
        if run.finished:
            if main:  # a kill after the model was published leaves them
                run.discard_checkpoints()
            return
        images = prepare_images(config, source, run, reporter, rank=accelerator.process_index)
        peers.check_same("numbers of readable images", images.count)
        metrics = held.enter_context(contextlib.closing(MetricsLogger(run.root, active=main)))
        worker = _Worker(config, run, accelerator, peers, images, metrics, reporter, budget)
        with StopRequest(peers.agree_to_stop) as stop:
            if config.ssl.only:
                worker.features(None, new_scheduler(), stop)
            else:
                unet, scheduler = given or worker.base(stop)
                worker.features(unet, scheduler, stop)


@dataclass(frozen=True)
class _Worker:
    """Both stages of one run."""

    config: RunConfig
    run: RunDirectory
    accelerator: Accelerator
    peers: PeerMonitor
    images: RunImages
    metrics: MetricsLogger
    reporter: Reporter
    budget: TimeBudget | None

    def base(self, stop: StopRequest) -> tuple[UNet, DDPMScheduler]:
        """The base of this run, trained first unless it already was."""
        if not (self.run.base / "unet").is_dir():
            self._train_base(stop)
            release_memory()  # its networks refer to themselves
        return load_base(str(self.run.base), resolution=self.config.data.resolution)

    def _train_base(self, stop: StopRequest) -> None:
        torch.manual_seed(fold_seed(self.config.seed, "base", "weights"))
        data = self.config.data
        unet, scheduler = build_unet(self.config.unet, data.resolution, data.channels), new_scheduler()
        objective = NoiseObjective(unet, NoiseSchedule.from_scheduler(scheduler))

        def save_samples(step: int, losses: torch.Tensor) -> None:
            path = self.run.samples / f"base-{step:08d}.png"
            samples.base_samples(unet, objective.schedule, seed=self.config.seed, step=step, path=path)
            chart = self.run.samples / "base-loss-by-timestep.png"
            samples.loss_chart(losses, layout=None, title=f"Base, step {step:,}", path=chart)
            self._show("base", step, path, chart)

        self._run("base", objective, stop, save_samples)

        def save(folder: Path) -> None:
            unet.save_pretrained(folder / "unet")
            scheduler.save_pretrained(folder / "scheduler")

        self._publish(self.run.base, save)

    def features(self, unet: UNet | None, scheduler: DDPMScheduler, stop: StopRequest) -> None:
        """Train encoder and shift decoder, or without a base the encoder alone, and save the pipeline."""
        config = self.config
        gap = self._gap(unet, scheduler)
        layout = config.layout(scheduler.config.num_train_timesteps, gap)
        if config.chunks.partition == "auto":
            sizes = ", ".join(str(end - start) for start, end in zip(layout.starts, layout.ends, strict=True))
            self.reporter.note(f"Dims of the chunks, by what the base loses: {sizes}.")
        objective = build_objective(config, unet, scheduler, gap)
        window = config.data.value_range
        pipeline = DiTiPipeline(
            unet=unet,
            encoder=objective.encoder,
            shift_decoder=objective.shift_decoder,
            scheduler=DDIMScheduler.from_config(scheduler.config),
            chunk_layout=layout.to_dict(),
            crop=config.data.crop,
            value_range=None if window is None else {"low": window[0], "high": window[1]},
        )

        def save_samples(step: int, losses: torch.Tensor) -> None:
            if unet is None:
                return
            path = self.run.samples / f"features-{step:08d}.png"
            with _lent(pipeline, self.accelerator.device):
                quality = samples.reconstructions(pipeline, self.images.preview, seed=config.seed, step=step, path=path)
            write_json(self.run.quality, {"reconstruction_psnr_db": quality, "step": step})
            chart = self.run.samples / "features-loss-by-timestep.png"
            samples.loss_chart(losses, layout=layout, title=f"Features, step {step:,}", path=chart)
            self._show(STAGE, step, path, chart)

        self._run(STAGE, objective, stop, save_samples)
        pipeline.to("cpu")
        self._publish(self.run.model, lambda folder: pipeline.save_pretrained(str(folder)))

    def _show(self, stage: str, step: int, pictures: Path, chart: Path) -> None:
        self.metrics.show(stage, step, "samples", pictures)
        self.metrics.show(stage, step, "loss_by_timestep", chart)

    def _gap(self, unet: UNet | None, scheduler: DDPMScheduler) -> GapCurve | None:
        """What the base loses on the run's images, where the settings need to know."""
        if unet is None or not self.config.measures_base:
            return None
        if self.accelerator.is_main_process:
            write_gap(
                self.run.gap,
                unet,
                NoiseSchedule.from_scheduler(scheduler),
                self.images.feed,
                self.images.count,
                seed=self.config.seed,
                precision=self.config.precision,
                device=self.accelerator.device,
                reporter=self.reporter,
            )
        self.accelerator.wait_for_everyone()
        return read_gap(self.run.gap, int(scheduler.config.num_train_timesteps))

    def _run(
        self, name: str, objective: Objective, stop: StopRequest, save_samples: Callable[[int, torch.Tensor], None]
    ) -> None:
        config = self.config
        stage = Stage(
            name=name,
            objective=objective,
            budget=config.base if name == "base" else config.features,
            feed=self.images.feed,
            images=self.images.count,
            resolution=config.data.resolution,
            channels=config.data.channels,
            seed=config.seed,
            flip=config.data.horizontal_flip,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            sample_every=config.sample_every,
            checkpoints=self.run.checkpoints,
            identity=identity_of_run(self.run, config, name, self.images.count),
            views=step_views(config, self.accelerator) if name == STAGE else None,
            views_from=config.ssl.start_step,
            beta=config.modularity.beta,
            before_checkpoint=lambda: compare_skipped(self.images, self.peers),
            on_sample=save_samples,
            pace=self.budget.pace(name) if self.budget else None,
        )
        if self.accelerator.is_main_process:
            drop_other_stages(self.run.checkpoints, name)
        self.accelerator.wait_for_everyone()
        trainer = StageTrainer(stage, self.accelerator, compile=config.compile is True, reporter=self.reporter)
        choose_kernels(
            stage,
            self.accelerator,
            self.peers,
            self.run.kernels,
            mode="compiled" if config.compile is True else "captured" if trainer.gradients.captures else "eager",
            reporter=self.reporter,
        )
        resumed = trainer.resume()
        self.peers.check_same("checkpoints", trainer.step)
        if resumed:
            self.reporter.note(f"Stage {name} goes on at step {trainer.step:,} of {trainer.whole.steps:,}.")
        run_stage(trainer, self.metrics, self.reporter, stop)
        trainer.release()

    def _publish(self, target: Path, save: Callable[[Path], None]) -> None:
        if self.accelerator.is_main_process:
            self.run.publish(target, save)
            self.run.discard_checkpoints()
        self.accelerator.wait_for_everyone()


@contextlib.contextmanager
def _lent(pipeline: DiTiPipeline, device: torch.device) -> Iterator[None]:
    """The pipeline on `device`, its base within the block only: training computes a copy of that, beside which it would
    take memory for the rest of the run."""
    unet = pipeline.denoisers()[0]
    home = unet.device
    pipeline.to(device)
    try:
        yield
    finally:
        unet.to(home)
