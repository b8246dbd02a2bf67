"""A segmented image as HTML: overlay with its legend, uncertainty, table of areas, downloads; all of it inline."""

from __future__ import annotations

import base64
import json
from html import escape

from seg_ext.serve.answer import Answer, answer, coco, png
from seg_ext.serve.service import Segmented, Service
from seg_ext.visualize import draw_scene


def result_html(found: Segmented, service: Service, task: str) -> str:
    """Overlay, uncertainty, table of areas and downloads of one image; nothing in it refers to a file.

    Args:
        found: of :meth:`seg_ext.serve.service.Service.segment`.
        service: its names and colours.
        task: that is shown.
    """
    full = answer(found, service.metadata, [task])
    picture = draw_scene(found.picture, found.scene, service.metadata).get(task, found.picture)
    parts = [f'<img alt="{task} segmentation" src="data:image/png;base64,{png(picture)}">']
    if full.uncertainty is not None:
        parts.append(f"<h3>Uncertainty: {full.uncertainty.mean:.1%} on average</h3>")
        parts.append(f'<img alt="uncertainty" src="data:image/png;base64,{full.uncertainty.map}">')
    parts += [_table(full), _downloads(full, service)]
    return "\n".join(parts)


def _table(full: Answer) -> str:
    pixels = full.height * full.width
    if full.semantic is not None:
        rows = [(area.name, "", area.pixels) for area in full.semantic.areas]
    elif full.panoptic is not None:
        rows = [(segment.name, "", segment.area) for segment in full.panoptic.segments]
    else:
        rows = [(x.name, f"{x.score:.2f}", x.area) for x in full.instance or ()]
    scored = any(score for _, score, _ in rows)
    head = f"<tr><th>class</th>{'<th>score</th>' if scored else ''}<th>pixels</th><th>area</th></tr>"
    cells = "".join(
        f"<tr><td>{escape(name)}</td>{f'<td>{score}</td>' if scored else ''}<td>{area:,}</td>"
        f"<td>{area / pixels:.1%}</td></tr>"
        for name, score, area in rows
    )
    return f'<table id="areas">{head}{cells}</table>'


def _downloads(full: Answer, service: Service) -> str:
    links = []
    map_ = full.semantic.labels if full.semantic else full.panoptic.ids if full.panoptic else None
    if map_ is not None:
        links.append(f'<a download="labels.png" href="data:image/png;base64,{map_}">PNG</a>')
    if full.instance is not None:
        text = base64.b64encode(json.dumps(coco(full, service.metadata)).encode()).decode()
        links.append(f'<a download="instances.json" href="data:application/json;base64,{text}">COCO JSON</a>')
    else:
        text = base64.b64encode(full.model_dump_json(exclude_none=True).encode()).decode()
        links.append(f'<a download="prediction.json" href="data:application/json;base64,{text}">JSON</a>')
    return f"<p>Download: {' '.join(links)}</p>"
