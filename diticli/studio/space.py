"""The studio as a Space of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from diticli._version import __version__
from diticli.errors import ConfigError
from diticli.files import write_atomically

_APP = '''"""diti studio as a Space."""

import os

from diticli.studio.serve import import_page, launch, open_bench, page_options, private_folder

with private_folder():
    module = import_page()
    bench = open_bench({model!r}, None, None)
    options = page_options(module, bench, {model!r}, None, None, None)
    page = module.build_page(bench, options)
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    launch(page, host="0.0.0.0", port=port, share=False, browser=False, auth=None, wait=False)
    print(f"The studio is at http://127.0.0.1:{{port}}/", flush=True)
    page.block_thread()
'''
_README = """---
title: diti studio
emoji: 🎚️
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: apache-2.0
---

Steer the chunks of a DiTi model ({model}). Made by `diti studio --export-space` of diticli {version}.
"""


def export_space(folder: Path, model: str, gradio_version: str) -> list[Path]:
    """Write app.py, requirements.txt and README.md with the Space's header.

    Args:
        folder: a new or empty folder.
        model: "shipped", or a Hub id; a Space cannot see this machine's folders.
        gradio_version: for the header.

    Raises:
        ConfigError: for a folder that holds things, or a model of this machine.
    """
    if Path(model).exists():
        raise ConfigError(
            f"A Space cannot see {model}.", remedy="Push the model to the Hub and give its id, or take shipped."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty.", remedy="Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "app.py": _APP.format(model=model),
        "requirements.txt": f"diticli[studio]=={__version__}\n",
        "README.md": _README.format(gradio=gradio_version, model=model, version=__version__),
    }
    for name, text in texts.items():
        write_atomically(folder / name, "file", text)
    return [folder / name for name in texts]
