"""Device, precision and processes of a run, from its settings and this machine."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from diti_kernels.sites import is_measured
from torch import nn

from diticli.config import RunConfig
from diticli.distributed import Rank, join
from diticli.errors import ConfigError, DeviceError
from diticli.models.compiled import may_capture_steps, should_compile
from diticli.models.device import resolve_device, resolve_precision
from diticli.models.layout import layout_for
from diticli.progress import Reporter, SilentReporter
from diticli.training.launcher import ignored_variables, launcher_hidden


def resolve(config: RunConfig) -> RunConfig:
    """Replace `auto` by what this machine has.

    Raises:
        DeviceError: for a device or precision it does not have.
    """
    device = resolve_device(config.device)
    config = replace(config, device=str(device), precision=resolve_precision(config.precision, device))
    if config.compile != "auto":
        return config
    return replace(config, compile=should_compile(config, device, _compiled_from(config, device)))


def _compiled_from(config: RunConfig, device: torch.device) -> float | None:
    if not is_measured(device.type):
        return None
    from diticli.tuning.compiling import compiled_from, training_site  # here, as building networks takes time

    captures = may_capture_steps(device, processes=Rank.from_environment().count, views=config.ssl.active)
    least = compiled_from(training_site(config, captures=captures), device)
    # A graph of the same kernels was seen to be faster than launching them, by how much compiling is a guess.
    return math.inf if least is None and captures else least


def make_accelerator(config: RunConfig, reporter: Reporter | None = None) -> Accelerator:
    """Accelerate's handle on device, precision and processes, for resolved settings.

    Args:
        config: resolved settings. They alone decide: variables of Accelerate that ask for something else are ignored.
        reporter: gets the names of such variables.

    Raises:
        ConfigError: when a global batch cannot be shared evenly by the processes, or is one image where a loss compares
            images; or when the launcher's variables do not fit together.
        DeviceError: when one GPU is named and several processes were started.
        OtherProcessError: when the processes did not find each other.
    """
    precision = "bf16" if config.precision == "bf16" else "no"
    # Before its first step the head takes no part, and DDP must not wait for it.
    late_head = config.ssl.active and config.ssl.start_step > 0
    # Buffers are constants, and batch norm's running statistics, which only the main process saves.
    sharing = DistributedDataParallelKwargs(
        find_unused_parameters=late_head, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    device = torch.device(config.device)
    if ignored := ignored_variables(device.type, precision):
        (reporter or SilentReporter()).warn(
            f"Ignored: {', '.join(ignored)}. What changes a training is set by diti's own options."
        )
    rank = join(device)
    _forget_other_accelerator(device, precision)
    with launcher_hidden(rank):
        accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[sharing])
    try:
        if device.index is not None:
            _take_gpu(accelerator, device)
        _check_shares(config, accelerator.num_processes)
    except (ConfigError, DeviceError):
        # All processes refuse; one that ends while another still joins would hide the reason behind a lost connection.
        accelerator.wait_for_everyone()
        raise
    return accelerator


def _check_shares(config: RunConfig, processes: int) -> None:
    for name, stage in (("base", config.base), ("features", config.features)):
        if stage.batch_size % processes:
            raise ConfigError(
                f"{name}.batch_size {stage.batch_size} cannot be shared by {processes} processes.",
                remedy="Use a multiple of the number of processes.",
            )
    if config.ssl.active and config.features.batch_size < 2:
        raise ConfigError(
            f"{config.ssl.method} compares images of a batch, features.batch_size is {config.features.batch_size}.",
            remedy="Use a larger --batch-size.",
        )


def _take_gpu(accelerator: Accelerator, device: torch.device) -> None:
    """Use the GPU that was named by its number; Accelerate knows only the current one."""
    if accelerator.num_processes > 1:
        raise DeviceError(
            f"{device} is one GPU, and {accelerator.num_processes} processes were started.",
            remedy="Use --device cuda: each process takes a GPU of its own.",
        )
    for state in (PartialState(), accelerator.state):
        state.device = device


def _forget_other_accelerator(device: torch.device, precision: str) -> None:
    """Accelerate keeps one state per process; a second run in it may want another device or precision."""
    if AcceleratorState._shared_state:
        state = AcceleratorState()
        same = state.device == device if state.num_processes == 1 else state.device.type == device.type
        if not same or state.mixed_precision != precision:
            AcceleratorState._reset_state(reset_partial_state=True)


def lay_out(objective: nn.Module, accelerator: Accelerator) -> None:
    """Trained convolutions in the layout of maps, on a CPU in float32: else every call would copy them to it and back.

    In half precision autocast copies them in any case, and several processes copy gradients to exchange them.
    """
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "no" or accelerator.num_processes > 1:
        return
    for module in objective.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            module.to(memory_format=layout_for(accelerator.device, module.weight.dtype))  # type: ignore[call-overload]
