"""`diti doctor`: what is used on this machine, and why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diticli.commands.options import DeviceOption, JsonOption
from diticli.reading import printable

if TYPE_CHECKING:
    from diticli.doctor.finding import Finding


TuneOption = Annotated[
    bool, typer.Option("--tune", help="First try the kernels of all presets on this GPU and compiling them: long.")
]


def doctor(device: DeviceOption = None, tune: TuneOption = False, as_json: JsonOption = False) -> None:
    """Tell what this machine offers, what diti uses of it, and why.

    Covers versions, GPUs and processor, precision, fused kernels, the attention operator for every shape of
    the presets, torch.compile (a tiny function is compiled), free disk and the Hugging Face cache; on a GPU also
    every kernel that was tried there: both times, their ratio, whether it agrees, what runs. What could
    be better comes with a remedy. The exit status is 1 only when something that commands need is broken.

    Example: diti doctor

    Example: diti doctor --device cpu --json

    Example: diti doctor --tune --json
    """
    from dataclasses import asdict

    from diticli.commands.console import emit_json, reporter, say
    from diticli.doctor.diagnose import diagnose

    say("Importing PyTorch and diffusers, and compiling a tiny function: on a busy machine up to a minute or so.")
    if tune:
        from diticli.doctor.tuning import tune_presets
        from diticli.models.device import resolve_device

        tune_presets(resolve_device(device), reporter())
    findings = diagnose(device)
    broken = any(finding.status == "broken" for finding in findings)
    if as_json:
        emit_json({"ok": not broken, "findings": [asdict(finding) for finding in findings], "tuning": _tried(device)})
    elif sys.stdout.isatty():
        _show_tables(findings)
    else:
        _print_lines(findings)
    if broken:
        raise typer.Exit(1)


def _tried(device: str | None) -> list[dict[str, Any]]:
    """A row for every kernel that was tried here; none where PyTorch is missing."""
    try:
        from diti_kernels.sites import is_measured

        from diticli.models.device import resolve_device
    except (ImportError, OSError, RuntimeError):
        return []
    found = resolve_device(device)
    if not is_measured(found.type):
        return []
    from diticli.doctor.tuning import rows

    return rows(found)


def _show_tables(findings: list[Finding]) -> None:
    from diticli.commands.console import show_table

    for topic in dict.fromkeys(finding.topic for finding in findings):
        rows = [[f.status, f.name, _told(f)] for f in findings if f.topic == topic]
        show_table(topic, ["", "what", "found"], rows)


def _told(finding: Finding) -> str:
    return f"{finding.value}\n-> {finding.remedy}" if finding.remedy else finding.value


def _print_lines(findings: list[Finding]) -> None:
    for finding in findings:
        typer.echo(printable(f"{finding.status:6}  {finding.topic:9}  {finding.name}: {finding.value}"))
        if finding.remedy:
            typer.echo(printable(f"{'':6}  -> {finding.remedy}"))
