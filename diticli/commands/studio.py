"""`diti studio`: a local page to steer the chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diticli.commands.options import DeviceOption, ModelOption


def studio(
    model: ModelOption = None,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", help="Output of diti probe: sliders for its attributes.", show_default=False),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Features of diti encode: nearest neighbours.", show_default=False),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation", help="Output of diti evaluate --atlas: what each chunk moves.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 let others in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.", show_default=False)
    ] = None,
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASSWORD", help="What visitors must give.", show_default=False)
    ] = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="Open a public tunnel through gradio.live for 72 hours; others see the page."),
    ] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    export_space: Annotated[
        Path | None,
        typer.Option("--export-space", help="Write a Hugging Face Space into this folder and end.", show_default=False),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Compare two pictures, move attributes and look inside a model, in the browser.

    Works at once with the shipped model and built-in faces, and talks to no other machine. Every view shows the
    command that repeats it.

    Example: diti studio

    Example: diti studio --model runs/ffhq --probe probe --features feats.npy
    """
    from diticli.commands.console import say, say_model
    from diticli.studio import serve

    login = serve.parse_auth(auth)
    with serve.private_folder():
        page_module = serve.import_page()
        if export_space is not None:
            import gradio

            from diticli.studio.space import export_space as export

            written = export(export_space, model or "shipped", gradio.__version__)
            say(f"Wrote {', '.join(path.name for path in written)} to {export_space}; push it to a Space of the Hub.")
            return
        bench = serve.open_bench(model, device, probe)
        say_model(bench.model)
        options = serve.page_options(page_module, bench, model, probe, features, evaluation)
        page = page_module.build_page(bench, options)
        if share or not serve.is_loopback(host):
            say(f"Others can reach this page{'' if login else ' and no password is asked (--auth USER:PASSWORD)'}.")
        _, address = serve.launch(
            page, host=host, port=port, share=share, browser=not no_browser, auth=login, wait=False
        )
        say(f"The studio is at {address} (Ctrl-C ends it).")
        page.block_thread()
