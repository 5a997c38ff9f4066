"""Starting the page: a private temporary folder, one queue, and a rule that the browser calls nobody else."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.errors import ConfigError
from diticli.reading import parse_json, read_regular, shortened

if TYPE_CHECKING:
    from diticli.studio.workbench import Workbench

# Read once by Gradio when it is imported. A model named by its Hub id may still be downloaded.
_SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

# The browser may load and call this page's own server only.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-src 'self'; form-action 'self'; base-uri 'self'"
)

WAITING = 100
"""Visitors' requests that may wait; more are told to try again."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Set what Gradio reads at import, and keep uploads and pictures in a folder that ends with the block."""
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    main = threading.current_thread() is threading.main_thread()
    ended = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if main else None  # ends the block, as Ctrl-C does
    before, uploads = tempfile.tempdir, os.environ.pop("GRADIO_TEMP_DIR", None)
    with tempfile.TemporaryDirectory(prefix="diti-studio-", ignore_cleanup_errors=True) as name:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(name) / "uploads")
        tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            if main:
                signal.signal(signal.SIGTERM, ended)
            tempfile.tempdir = before
            del os.environ["GRADIO_TEMP_DIR"]
            if uploads is not None:
                os.environ["GRADIO_TEMP_DIR"] = uploads


def import_page() -> Any:
    """The page's module.

    Raises:
        ConfigError: when Gradio is not installed.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "The studio needs the library gradio.", remedy='Install it: pip install "diticli[studio]".'
        ) from error
    from diticli.studio import page

    return page


def open_bench(model: str | None, device: str | None, probe: Path | None) -> Workbench:
    """The model and, if wanted, a probe's directions.

    Raises:
        ModelError: when there is no such model.
        LabelError: when the probe is of another model.
    """
    from diticli.models.load import load_model
    from diticli.studio.workbench import Workbench

    loaded = load_model(model, device)
    directions = None
    if probe is not None:
        from diticli.probing.directions import load_directions

        directions = load_directions(probe)
        directions.check_model(loaded.hash_like(directions.full.model_hash), loaded.model_id)
    return Workbench(loaded, directions=directions)


def read_effects(
    evaluation: Path | None, known: Callable[[str], str] = str
) -> tuple[dict[str, list[float]], list[list[int]]]:
    """(attribute -> transfer rate of each group of chunks, the groups) of `diti evaluate --atlas`; empty without one.

    Args:
        evaluation: the folder, or its JSON file.
        known: hash of a model -> the hash that the page's model has in the same form; another than that is refused.

    Raises:
        ConfigError: when the file holds no swap effects, or those of another model.
    """
    if evaluation is None:
        return {}, []
    path = evaluation / "evaluation.json" if evaluation.is_dir() else evaluation
    try:
        measured = parse_json(read_regular(path))["models"][0]
        atlas, model = measured["atlas"], str(measured.get("model_hash", ""))
        groups = [[int(chunk) for chunk in group] for group in atlas["groups"]]
        effects = {str(name): [float(rate["value"]) for rate in rates] for name, rates in atlas["shares"].items()}
        if not all(groups) or any(len(rates) != len(groups) for rates in effects.values()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} holds no swap effects.", remedy="Give the output of `diti evaluate --atlas`."
        ) from error
    if model and known(model) != model:
        raise ConfigError(
            f"{path} measures another model (hash {shortened(model)}, not {known(model)}).",
            remedy="Run `diti evaluate --atlas` with this model.",
        )
    return effects, groups


HEATMAPS = {
    "atlas-0.png": "Swap atlas: what exchanging each group of chunks moves",
    "atlas.png": "Swap atlas: what exchanging each group of chunks moves",
    "atlas-alone.png": "Chunk probe: what each chunk alone predicts",
    "atlas-unique.png": "Chunk probe: what only this chunk predicts",
    "atlas-prefix.png": "Chunk probe: what all chunks up to this one predict",
    "chunk-correlation.png": "How chunks correlate",
}
"""Pictures that `diti evaluate --atlas` and `diti probe --atlas` write, and that of a model's card."""


def find_heatmaps(model: str, probe: Path | None, evaluation: Path | None) -> list[tuple[str, Path]]:
    """Title and file of each heatmap of an evaluation and a probe; the shipped model has one of its own."""
    from diticli.models.hub import SHIPPED, SHIPPED_FOLDER

    folders = [folder if folder.is_dir() else folder.parent for folder in (evaluation, probe) if folder is not None]
    if evaluation is None and model == SHIPPED:
        folders.insert(0, SHIPPED_FOLDER)
    found = [(title, folder / name) for folder in folders for name, title in HEATMAPS.items()]
    return [(title, path) for title, path in found if path.is_file()]


def page_options(
    module: Any, bench: Workbench, model: str | None, probe: Path | None, features: Path | None, evaluation: Path | None
) -> Any:
    """`PageOptions` of what was given on the command line.

    Raises:
        FeatureFileError: when the features cannot be read or are of another width.
        ConfigError: when the evaluation holds no swap effects.
    """
    from diticli.probing.read_scores import read_scores
    from diticli.studio.neighbours import Neighbours

    effects, groups = read_effects(evaluation, bench.model.hash_like)
    return module.PageOptions(
        title=f"Model: {bench.model.origin}, {bench.model.resolution} px.",
        model=model or bench.model.model_id,
        effects=effects,
        groups=groups,
        scores={name: score.value for name, score in read_scores(probe).items()},
        probe=None if probe is None else str(probe),
        neighbours=None if features is None else Neighbours(features, bench.model.chunks.latent_dim),
        features=None if features is None else str(features),
        heatmaps=find_heatmaps(bench.model.model_id, probe, evaluation),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a page that is served there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_auth(text: str | None) -> tuple[str, str] | None:
    """USER:PASSWORD.

    Raises:
        ConfigError: for anything else.
    """
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise ConfigError("--auth needs a user and a password.", remedy="Write --auth USER:PASSWORD.")
    return user, password


def launch(
    page: Any,
    *,
    host: str,
    port: int | None,
    share: bool,
    browser: bool,
    auth: tuple[str, str] | None,
    wait: bool = True,
) -> tuple[Any, str]:
    """Serve the page; with `wait` until Ctrl-C.

    Args:
        page: of `diticli.studio.page.build_page`.
        host: address to listen on.
        port: None takes the first free one from 7860.
        share: open a tunnel of gradio.live.
        browser: open the page.
        auth: what visitors must give.
        wait: block.

    Returns:
        The web application, and the page's address.

    Raises:
        ConfigError: when the port is taken.
    """
    import gradio as gr

    static, plain = files("diticli.studio"), ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=plain, font_mono=["ui-monospace", "monospace"])
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    try:
        app, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=browser,
            auth=auth,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            max_file_size="50mb",
            theme=theme,
            css=(static / "studio.css").read_text(encoding="utf-8"),
            js=(static / "page.js").read_text(encoding="utf-8"),
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            pwa=False,
        )
    except OSError as error:
        raise ConfigError(f"Cannot serve on {host}:{port or 7860}.", remedy="Choose another --port.") from error
    if not share:
        _keep_inside(app)
    if wait:
        page.block_thread()
    return app, address


def _keep_inside(app: Any) -> None:
    """Every answer tells the browser to talk to nobody else."""
    inner = app.middleware_stack or app.build_middleware_stack()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await inner(scope, receive, tell if scope["type"] == "http" else send)

    app.middleware_stack = guarded
