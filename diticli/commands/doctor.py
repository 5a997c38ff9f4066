"""`diti doctor`: what is used on this machine, and why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from diticli.commands.options import DeviceOption, JsonOption
from diticli.reading import printable

if TYPE_CHECKING:
    from diticli.doctor.finding import Finding


def doctor(device: DeviceOption = None, as_json: JsonOption = False) -> None:
    """Tell what this machine offers, what diti uses of it, and why.

    Covers versions, GPUs and processor, precision, fused kernels, the attention operator for every shape of
    the presets, torch.compile (a tiny function is compiled), free disk and the Hugging Face cache. What could
    be better comes with a remedy. The exit status is 1 only when something that commands need is broken.

    Example: diti doctor

    Example: diti doctor --device cpu --json
    """
    from dataclasses import asdict

    from diticli.commands.console import emit_json
    from diticli.doctor.diagnose import diagnose

    findings = diagnose(device)
    broken = any(finding.status == "broken" for finding in findings)
    if as_json:
        emit_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]})
    elif sys.stdout.isatty():
        _show_tables(findings)
    else:
        _print_lines(findings)
    if broken:
        raise typer.Exit(1)


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
