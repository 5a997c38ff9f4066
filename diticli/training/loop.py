"""The training loop of both stages. It knows an objective, a feed and a budget, and nothing of the method."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from diticli.distributed import Rank
from diticli.errors import CheckpointError, TrainingDivergedError
from diticli.memory import keep_freed_memory
from diticli.models.compiled import compiler_for, may_capture_steps
from diticli.models.pipeline import EMAModel
from diticli.progress import Reporter, SilentReporter
from diticli.reading import quoted, shortened
from diticli.training.accelerator import lay_out
from diticli.training.batches import DataOrder, fold_seed
from diticli.training.captured import TOLERANCE, StepGradients
from diticli.training.checkpoint import (
    MAX_STEP,
    Checkpoint,
    check_fits,
    check_identity,
    flatten_optimizer,
    list_checkpoints,
    load_checkpoint,
    not_finite,
    restore_optimizer,
    save_checkpoint,
)
from diticli.training.metrics_log import MetricsLogger
from diticli.training.objectives import StepLosses
from diticli.training.pace import Horizon
from diticli.training.stage import Stage, draw_inputs, fitting, learning_rate
from diticli.training.stopping import StopRequest, TrainingInterrupted
from diticli.training.totals import Totals

MOST_SKIPPED_IN_A_ROW = 10
"""Steps without a finite gradient, one after the other, at which a training stops."""
MOST_STEPS = 10**9
"""Steps that images are ordered for where time decides how many there are."""
MOST_SKIPPED = 0.05
"""Share of a stage's steps without a finite gradient above which its result is not published."""


class StageTrainer:
    """State of a stage in progress: weights, moving average, optimizer and running totals.

    Args:
        stage: what is trained.
        accelerator: device, precision and processes.
        compile: compile the parts of the objective; their weights keep their names.
        reporter: warned where that fails.
    """

    def __init__(
        self, stage: Stage, accelerator: Accelerator, *, compile: bool = False, reporter: Reporter | None = None
    ) -> None:
        self.stage, self.accelerator = stage, accelerator
        self.reporter, self.step = reporter or SilentReporter(), 0
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        self.whole = Horizon(stage.budget.steps)
        self.decay = Horizon(stage.budget.steps, since=stage.budget.warmup_steps)
        lay_out(stage.objective, accelerator)
        self.parameters = [p for p in stage.objective.parameters() if p.requires_grad]
        self.fused = torch.optim.Adam(self.parameters, lr=stage.budget.peak_learning_rate, fused=True)
        stage.objective.to(accelerator.device)
        self.averaged = [p for m in stage.objective.trained_modules().values() for p in m.parameters()]
        self.ema = EMAModel(self.averaged, decay=stage.budget.ema_decay, foreach=True)
        self.ema.to(accelerator.device)
        if compile:
            stage.objective.compile_parts(compiler_for(self.reporter))
        with warnings.catch_warnings():  # torch 2.13 has another name for it, older ones have not
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self.module, self.optimizer = accelerator.prepare(stage.objective, self.fused)
        self.totals = Totals(accelerator, stage.objective.timesteps)
        self.gradients = StepGradients(
            self._gradients,
            stage.objective,
            capture=not compile
            and may_capture_steps(
                accelerator.device, processes=accelerator.num_processes, views=stage.views is not None
            ),
            name=stage.name,
            tolerance=TOLERANCE[accelerator.mixed_precision],
            reporter=self.reporter,
        )
        self._compiled = compile

    def release(self) -> None:
        """Let go of what outlives this trainer: Accelerate keeps what it prepared, and torch.compile its graphs."""
        self.gradients.release()
        self.accelerator.free_memory()
        if self._compiled:
            torch.compiler.reset()

    def resume(self) -> bool:
        """Go on from the newest checkpoint of this stage, if there is one."""
        found = list_checkpoints(self.stage.checkpoints)
        if not found:
            return False
        checkpoint = load_checkpoint(found[-1])
        if checkpoint.state["stage"] != self.stage.name:
            return False
        check_identity(checkpoint, self.stage.identity, found[-1])
        try:
            self._restore(checkpoint)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{found[-1]} does not fit this run ({shortened(error)}).",
                remedy=f"Delete {found[-1]} to go on from the checkpoint before it.",
            ) from error
        return True

    def _restore(self, checkpoint: Checkpoint) -> None:
        parts, state = checkpoint.tensors, checkpoint.state
        named, averaged = self._state(), {str(i): p for i, p in enumerate(self.ema.shadow_params)}
        check_fits("weights", parts["weights"], named)
        check_fits("ema", parts["ema"], averaged)
        if name := not_finite(parts):
            raise ValueError(f"it holds numbers that are not finite ({name})")
        with torch.no_grad():
            for own, read in ((named, parts["weights"]), (averaged, parts["ema"])):
                for name, value in own.items():
                    value.copy_(read[name])
        restore_optimizer(self.optimizer, parts["optimizer"])
        if type(steps := state["ema_step"]) is not int or not 0 <= steps <= MAX_STEP:
            raise ValueError(f"its ema_step is {quoted(steps)}")
        self.ema.optimization_step = steps
        self.totals.restore(parts["totals"])
        self.step = state["step"]
        if self.stage.pace is not None and (saved := state.get("pace")):
            self.stage.pace.restore(saved["clock"])
            self.whole, self.decay = Horizon.restored(saved["whole"]), Horizon.restored(saved["decay"])
        # Without its clock a run that time ended late is over.
        if self.step > self.whole.steps and not (self.stage.pace is None and state.get("pace")):
            raise ValueError(f"its step is {self.step:,} of {self.whole.steps:,}")

    def move_end(self, steps: int) -> None:
        """Plan `steps` steps in all from this one on; the learning rate decays to its end by then."""
        self.whole, self.decay = self.whole.moved(self.step, steps), self.decay.moved(self.step, steps)

    def _state(self) -> dict[str, torch.Tensor]:
        """All that training changes in the objective: parameters and buffers, such as those of batch norm."""
        frozen = {name for name, p in self.stage.objective.named_parameters() if not p.requires_grad}
        return {name: v for name, v in self.stage.objective.state_dict().items() if name not in frozen}

    def save(self) -> None:
        """Write a checkpoint of this moment, by the main process; all of them must ask for it.

        Raises:
            TrainingDivergedError: when a number of it is not finite; nothing is written.
            CheckpointError: when it cannot be written.
        """
        totals = self.totals.state()
        if not self.accelerator.is_main_process:
            return
        tensors = {
            "weights": self._state(),
            "ema": {str(i): p for i, p in enumerate(self.ema.shadow_params)},
            "optimizer": flatten_optimizer(self.optimizer),
            "totals": totals,
        }
        state = {
            "stage": self.stage.name,
            "step": self.step,
            "images": self.step * self.stage.budget.batch_size,
            "ema_step": self.ema.optimization_step,
            "identity": self.stage.identity,
        }
        if self.stage.pace is not None and (clock := self.stage.pace.to_dict()):
            state["pace"] = {"clock": clock, "whole": astuple(self.whole), "decay": astuple(self.decay)}
        if name := not_finite(tensors):
            raise self._diverged(f"{name} became infinite or NaN")
        save_checkpoint(self.stage.checkpoints, Checkpoint(tensors, state))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The moving average in place of the weights, and eval mode, within the block."""
        self.gradients.make_room()
        modes = {m: m.training for m in self.stage.objective.modules()}
        self.ema.store(self.averaged)
        self.ema.copy_to(self.averaged)
        self.stage.objective.eval()
        try:
            yield
        finally:
            self.ema.restore(self.averaged)
            for module, mode in modes.items():
                module.training = mode
            self.gradients.look_again()

    def train_step(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """One optimizer step; adds to the totals without waiting for the device.

        Args:
            inputs: arguments of the objective by name.
        """
        budget = self.stage.budget
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(budget, self.step, self.decay)
        losses = self.gradients(inputs)
        skipped = self._skip_unless_finite(self._gradient_norm())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.averaged)
        self.step += 1
        self.totals.add(losses, inputs.get("t_B"), skipped)

    def _gradients(self, inputs: Mapping[str, torch.Tensor]) -> StepLosses:
        """Losses of a step; adds its gradients to those of the parameters."""
        with self.accelerator.autocast():
            losses = StepLosses.coerce(self.module(**inputs))
        self.accelerator.backward(losses.total_B.mean())
        return losses

    def _gradient_norm(self) -> torch.Tensor:
        """Norm of all gradients before they are clipped, the same on all processes."""
        if self.stage.budget.grad_clip:
            norm: torch.Tensor = self.accelerator.clip_grad_norm_(self.parameters, self.stage.budget.grad_clip)
            return norm
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def _skip_unless_finite(self, norm: torch.Tensor) -> torch.Tensor:
        """Let the optimizer leave weights and moments alone where `norm` is no number; the host does not wait.

        Fused Adam reads `found_inf` on the device, as it does for PyTorch's `GradScaler`.

        Returns:
            1.0 where the step is skipped, else 0.0.
        """
        skipped = torch.isfinite(norm).logical_not().float()
        self.fused.found_inf = skipped  # type: ignore[attr-defined]
        return skipped

    def check_skipped(self, reporter: Reporter, *, last: bool = False) -> int:
        """Say how many steps were skipped since the last call, and stop where there are too many. Waits for the device.

        Raises:
            TrainingDivergedError: when the gradients of many steps in a row, or at the end of a stage of more than
                5 % of its steps, were not finite.
        """
        skipped = self.totals.skipped()
        if skipped.new:
            reporter.warn(
                f"{skipped.new:,} step(s) of stage {self.stage.name} up to step {self.step:,} had gradients that are "
                "not finite; the weights were left as they were."
            )
        if skipped.most_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise self._diverged(f"the gradients of {skipped.most_in_a_row:,} steps in a row were not finite")
        if last and skipped.all > MOST_SKIPPED * self.step:
            raise self._diverged(f"the gradients of {skipped.all:,} of {self.step:,} steps were not finite")
        return skipped.new

    def _diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"Stage {self.stage.name} diverged: by step {self.step:,} {what}.",
            remedy="The last good checkpoint is kept. Lower the learning rate (--lr) or use --precision fp32; "
            "with other settings the run needs a new --out.",
        )

    def take_mean_loss(self) -> float | None:
        """Mean loss since the last call, over all processes; None when every step was skipped.

        Raises:
            TrainingDivergedError: when it is NaN or infinite.
        """
        mean = self.totals.take_mean()
        if mean is not None and not math.isfinite(mean):
            raise self._diverged(f"its loss became {mean}")
        return mean


def run_stage(trainer: StageTrainer, metrics: MetricsLogger, reporter: Reporter, stop: StopRequest) -> None:
    """Train to the end of the budget; leaves the moving average in the weights.

    Raises:
        TrainingInterrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
        TrainingDivergedError: when the loss is no number any more.
    """
    stage, accelerator = trainer.stage, trainer.accelerator
    rank = Rank.from_accelerator(accelerator)
    budget = stage.budget
    order = DataOrder(stage.images, budget.batch_size, fold_seed(stage.seed, stage.name, "order"))
    noise = stage.noise(rank, budget.batch_size)
    stage.objective.train()
    metrics.truncate_after(stage.name, trainer.step)
    done = trainer.step * budget.batch_size
    reporter.start(f"Stage {stage.name}", trainer.whole.steps * budget.batch_size, unit="images", done=done)
    started, first_step, skipped = time.perf_counter(), trainer.step, 0
    second = started
    apart = stage.pace.apart if stage.pace else contextlib.nullcontext
    open_end = stage.pace is not None and stage.pace.seconds is not None and trainer.step < trainer.whole.steps
    last_step = MOST_STEPS if open_end else trainer.whole.steps
    fits = fitting(stage, accelerator)
    batches = stage.feed.batches(order, trainer.step, last_step, rank, accelerator.device)
    for images in _guarded(batches, fits):
        views = stage.views if trainer.step >= stage.views_from else None
        with fits():
            trainer.train_step(draw_inputs(stage, noise, views, trainer.step, images, trainer.whole))
        if (steps := trainer.step - first_step) == 1:
            second = time.perf_counter()  # the first step may compile
        fields: dict[str, Any] = _plan_anew(trainer, reporter)
        last = trainer.step >= trainer.whole.steps
        if trainer.step % stage.log_every == 0 or last:
            skipped += trainer.check_skipped(reporter, last=last)
            if skipped:
                fields["skipped_steps"], skipped = skipped, 0
            if (loss := trainer.take_mean_loss()) is not None:
                fields["loss"] = loss
            # After the loss was read, which waits for the device: queued steps are not yet computed.
            counted, since = (steps - 1, second) if steps > 1 else (steps, started)
            rate = counted * budget.batch_size / (time.perf_counter() - since)
            if (ssl_loss := trainer.totals.take_mean_ssl()) is not None:
                fields["ssl_loss"] = ssl_loss
            metrics.log(
                stage=stage.name,
                step=trainer.step,
                images=trainer.step * budget.batch_size,
                **fields,
                lr=trainer.optimizer.param_groups[0]["lr"],
                images_per_second=rate,
            )
        reporter.advance(budget.batch_size, **fields)
        if stage.sample_every and (trainer.step % stage.sample_every == 0 or last):
            losses = trainer.totals.take_by_timestep()
            if accelerator.is_main_process:
                with apart(), trainer.averaged_weights():
                    _sample(stage, trainer.step, losses, reporter)
        stopping = stop.now()
        if stopping or trainer.step % stage.checkpoint_every == 0 or last:
            skipped += trainer.check_skipped(reporter, last=last)
            stage.before_checkpoint()
            with apart():
                trainer.save()
        if last:
            break
        if stopping:
            raise TrainingInterrupted(stage.name, trainer.step, trainer.whole.steps, stopping)
    trainer.ema.copy_to(trainer.averaged)
    stage.objective.eval()
    reporter.finish()
    if trainer.whole.steps != budget.steps:
        seen, planned = trainer.step * budget.batch_size, budget.steps * budget.batch_size
        reporter.note(f"Stage {stage.name} ended in its time after {seen:,} images instead of the planned {planned:,}.")


def _plan_anew(trainer: StageTrainer, reporter: Reporter) -> dict[str, Any]:
    """Where time is the budget, move the end of the stage to where the time will be over.

    Returns:
        What metrics.jsonl keeps of it.
    """
    pace, step, accelerator = trainer.stage.pace, trainer.step, trainer.accelerator
    if pace is None or pace.seconds is None:
        return {}
    if pace.due(step):
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize(accelerator.device)
        steps = [pace.plan(step, trainer.whole.steps)]
        if accelerator.num_processes > 1:  # each has a clock of its own
            broadcast_object_list(steps)
        if steps[0] != trainer.whole.steps:
            trainer.move_end(steps[0])
            reporter.expect(steps[0] * trainer.stage.budget.batch_size)
        pace.planned(step, steps[0])
    return {"planned_steps": trainer.whole.steps}


def _guarded(
    batches: Iterator[torch.Tensor], fits: Callable[[], contextlib.AbstractContextManager[None]]
) -> Iterator[torch.Tensor]:
    """The batches, each of which is made in that context."""
    while True:
        with fits():
            images = next(batches, None)
        if images is None:
            return
        yield images


def _sample(stage: Stage, step: int, losses: torch.Tensor, reporter: Reporter) -> None:
    """Draw the pictures of a step. They are for looking at: whatever goes wrong with them, the training goes on."""
    try:
        stage.on_sample(step, losses)
    except Exception as error:
        what = str(error).strip().splitlines() or [""]
        reporter.warn(
            f"The sample pictures of step {step:,} of stage {stage.name} could not be drawn "
            f"({type(error).__name__}: {what[0]}); the training goes on."
        )
