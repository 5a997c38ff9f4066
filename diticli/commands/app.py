"""The `diti` command: which commands there are, and errors as one line."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, ClassVar

import typer

from diticli.commands.console import say
from diticli.commands.failure import be_verbose, explain, explain_interrupt, keeps, sigterm_as_interrupt
from diticli.commands.lazy import LazyGroup, Maker, imported, paragraphs
from diticli.errors import DeviceError, DiTiError
from diticli.memory import device_failure
from diticli.variables import unknown_variables

COMMANDS = ("train", "encode", "probe", "compare", "edit", "evaluate", "convert", "faces", "studio", "demo", "doctor")
"""In the order in which they are used."""


class _Group(LazyGroup):
    """Catches what a command raises before Typer does."""

    MAKERS: ClassVar[dict[str, Maker]] = {name: imported(name) for name in COMMANDS}

    def invoke(self, ctx: Any) -> Any:
        keeps()
        try:
            with sigterm_as_interrupt():
                return super().invoke(ctx)
        except DiTiError as error:
            raise typer.Exit(explain(error)) from error
        except (MemoryError, RuntimeError) as error:
            failure = device_failure(error)
            if failure is None:
                from diticli.doctor.diagnose import OTHER_BUILD, torchvision_of_another_build

                if not torchvision_of_another_build(error):
                    raise
                failure = DeviceError("torchvision is of another build than PyTorch.", remedy=OTHER_BUILD)
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
