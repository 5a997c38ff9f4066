"""The page: its tabs, and what ends with a visit."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from diticli.studio.attribute_tab import attribute_tab
from diticli.studio.inside_tab import inside_tab
from diticli.studio.pair_tab import pair_tab
from diticli.studio.parts import Changes, PageOptions, safe
from diticli.studio.workbench import Workbench


def build_page(bench: Workbench, options: PageOptions) -> gr.Blocks:
    """All tabs.

    Args:
        bench: the model.
        options: what is known of it.
    """
    layout = bench.model.chunks
    changes = Changes()
    with gr.Blocks(title="diti studio", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# diti studio\n{safe(options.title)}")
        with gr.Tabs():
            with gr.Tab("Compare"):
                pair_tab(bench, options, layout, changes, page)
            with gr.Tab("Attributes") as tab:
                attribute_tab(bench, options, layout, changes, tab)
            with gr.Tab("Look inside") as tab:
                inside_tab(bench, options, layout, changes, tab)
        page.unload(_leaving(changes))
    return page


def _leaving(changes: Changes) -> Callable[[gr.Request], None]:
    def leave(request: gr.Request) -> None:
        changes.leave(str(request.session_hash))

    return leave
