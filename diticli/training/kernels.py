"""How a stage's operations run on a GPU: chosen before its first step, by the first process for all, and kept."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from diti_kernels.sites import Mode, is_measured

from diticli.distributed import PeerMonitor
from diticli.progress import Reporter
from diticli.training.stage import Stage, trial_inputs


def choose_kernels(
    stage: Stage,
    accelerator: Accelerator,
    peers: PeerMonitor | None,
    kept: Path | None,
    *,
    mode: Mode,
    reporter: Reporter,
) -> None:
    """Measure or look up the ways of the stage's operations; see `diticli.tuning.tune`. Nothing is done on a CPU.

    Args:
        stage: its objective is on the device.
        accelerator: device, precision and processes.
        peers: the same processes; None for one alone.
        kept: file of the run's choices, which a resumed run goes on with; None keeps none.
        mode: how its steps run. Of a captured stage some do not, by the same kernels.
        reporter: warned of kernels that are wrong or fail.

    Raises:
        ConfigError: when DITI_TUNE is no number of seconds.
    """
    from diticli.tuning.tune import tune

    device = accelerator.device
    if not is_measured(device.type) or (stage.views is not None and accelerator.num_processes > 1):
        return  # the heads of views wait for other processes: the reference runs
    inputs = trial_inputs(stage, stage.budget.batch_size // accelerator.num_processes, device)

    def losses() -> object:
        with accelerator.autocast():
            return stage.objective(**inputs)

    before = [buffer.clone() for buffer in stage.objective.buffers()]  # batch norm counts by itself
    tune(
        losses,
        device=device,
        mode=mode,
        alike=("eager", "captured"),
        reporter=reporter,
        peers=peers,
        kept=kept,
        part=stage.name,
    )
    for buffer, value in zip(stage.objective.buffers(), before, strict=True):
        buffer.copy_(value)
