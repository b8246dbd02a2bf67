"""The page to try a model on, in gradio: drop an image, see overlay, legend and areas, download PNG and COCO JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio
from fastapi import FastAPI

from seg_ext.errors import UserError
from seg_ext.serve.result import result_html
from seg_ext.serve.service import Refused, Service

CSS = """
.seg-ext img {max-width: 100%; height: auto}
.seg-ext table {border-collapse: collapse} .seg-ext td, .seg-ext th {padding: 2px 12px; text-align: left}
.seg-ext i {display: inline-block; width: 1em; height: 1em; vertical-align: -0.1em}
"""


def add_page(app: FastAPI, service: Service, *, title: str) -> FastAPI:
    """Mount the page at ``/``; its requests go through the service's queue and limits."""
    blocks = build_page(service, title=title)
    blocks.queue(max_size=service.limits.queue + 1, default_concurrency_limit=1)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing from outside
    mounted: FastAPI = gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        max_file_size=service.limits.bytes,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        theme=theme,
        css=CSS,
    )
    return mounted


def build_page(service: Service, *, title: str) -> Any:
    """The page's blocks."""

    def respond(file: str | None, task: str, threshold: float, tta: bool, uncertainty: bool) -> str:
        if file is None:
            return ""
        try:
            with service.admitted():
                content = Path(file).read_bytes()
                found = service.segment(content, threshold=threshold, tta=tta, uncertainty=uncertainty)
            return result_html(found, service, task)
        except Refused as error:
            raise gradio.Error(error.message, print_exception=False) from None
        except UserError as error:
            raise gradio.Error(error.line, print_exception=False) from None

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            with gradio.Column(scale=1):
                file = gradio.File(label="Image", file_types=["image"], type="filepath", elem_id="image")
                task = gradio.Radio(list(service.tasks), value=service.tasks[-1], label="Task")
                threshold = gradio.Slider(0, 1, 0.5, label="Least score of an object", visible=len(service.tasks) > 1)
                tta = gradio.Checkbox(label="Average with the mirror image (TTA)")
                uncertainty = gradio.Checkbox(label="Show uncertainty", visible="semantic" in service.tasks)
                button = gradio.Button("Segment", variant="primary", elem_id="segment")
            with gradio.Column(scale=3):
                result = gradio.HTML(elem_id="result", elem_classes=["seg-ext"])
        inputs = [file, task, threshold, tta, uncertainty]
        for event in (file.upload, button.click):
            event(respond, inputs, result, api_visibility="private", concurrency_limit=1)
    return blocks
