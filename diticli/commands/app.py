"""The `diti` command: registers the commands and turns errors into one line."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diticli.commands import edit
from diticli.commands.compare import compare
from diticli.commands.console import say
from diticli.commands.convert import convert
from diticli.commands.demo import demo
from diticli.commands.doctor import doctor
from diticli.commands.encode import encode
from diticli.commands.evaluate import evaluate
from diticli.commands.faces import faces
from diticli.commands.failure import be_verbose, explain, explain_interrupt, sigterm_as_interrupt
from diticli.commands.options import paragraphs
from diticli.commands.probe import probe
from diticli.commands.studio import studio
from diticli.commands.train import train
from diticli.errors import DiTiError
from diticli.memory import device_failure
from diticli.variables import unknown_variables


class _Group(TyperGroup):
    """Catches what a command raises before Typer does."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which they are used: Typer lists groups first."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: names.index("compare") + 0.5 if name == "edit" else names.index(name))

    def invoke(self, ctx: Any) -> Any:
        try:
            with sigterm_as_interrupt():
                return super().invoke(ctx)
        except DiTiError as error:
            raise typer.Exit(explain(error)) from error
        except (MemoryError, RuntimeError) as error:
            if (failure := device_failure(error)) is None:
                raise
            raise typer.Exit(explain(failure)) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(explain_interrupt(interrupt)) from interrupt


app = typer.Typer(
    name="diti",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if not show:
        return
    from diticli.training.rundir import versions

    typer.echo("\n".join(f"{name} {number}" for name, number in versions().items()))
    raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also show logs, warnings of libraries and where errors come from.")
    ] = False,
) -> None:
    """Modular image features from diffusion timesteps: train, encode, probe, edit.

    Start with `diti demo`, or with your own images: `diti train --data ./photos`.
    """
    if verbose:
        be_verbose()
    else:
        # Damaged EXIF and very large pictures: what cannot be read is listed by name, the rest is noise.
        warnings.filterwarnings("ignore", module=r"PIL\.")
    for text in unknown_variables():
        say(text)


app.callback(help=paragraphs(_root.__doc__))(_root)
app.add_typer(edit.app, name="edit")
for _command in (train, encode, probe, compare, evaluate, convert, faces, studio, demo, doctor):
    app.command(help=paragraphs(_command.__doc__))(_command)
