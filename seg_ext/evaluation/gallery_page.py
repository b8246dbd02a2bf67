"""The gallery's page as HTML: results on top, worst images, worst objects; it needs nothing but its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from seg_ext.visualize import Array

MIN_SCORE = 0.5  # of the instances that are drawn and counted
TRUTH_RGB, GUESS_RGB = (0, 190, 255), (255, 145, 0)  # of outlines
_OF_CLASS = re.compile(  # metric-class; n-<error> of TIDE, KeptACC-<map> and AURC-<map> are of no class
    r"(?!n-|KeptACC-|AURC-)(min\(IoU, B-Iou\)|[^-]+)-(.+)", re.DOTALL
)
_TASKS = {"semantic": "mIoU", "instance": "F1", "panoptic": "PQ"}  # and the score of one image


@dataclass(frozen=True)
class Case:
    """An image on the page, with the names of its pictures."""

    file_name: str
    scores: dict[str, float]  # by task; empty without ground truth
    image: str
    rows: dict[str, tuple[str | None, str]]  # by task: ground truth, prediction

    @property
    def files(self) -> list[str]:
        """Names of all its pictures."""
        return [self.image, *(name for row in self.rows.values() for name in row if name)]


@dataclass(frozen=True)
class Tile:
    """An object on the page."""

    file_name: str
    caption: str
    picture: Array


def page_html(
    title: str,
    results: Mapping[str, Any],
    seen: int,
    cases: list[Case],
    best: list[Case],
    tiles: dict[str, Tile],
    *,
    figures: Mapping[str, str] | None = None,
) -> str:
    """The whole page.

    Args:
        title: name of the data set.
        results: of the evaluators, task -> metric -> value.
        seen: number of images that were evaluated.
        cases: images, worst first.
        best: images, best first.
        tiles: objects by the name of their picture, worst first.
        figures: heading -> HTML, after the results.
    """
    heads = [f'<a href="#images">{len(cases)} worst of {seen} images</a>']
    cards = "".join(_case_html(number, case) for number, case in enumerate(cases, start=1))
    body = f"{_results_html(results)}{_figures_html(figures or {})}"
    body += f'<section id="images"><h2>Worst images</h2>{cards}</section>'
    if best:
        heads.append(f'<a href="#best">{len(best)} best images</a>')
        cards = "".join(_case_html(number, case) for number, case in enumerate(best, start=len(cases) + 1))
        body += f'<section id="best"><h2>Best images</h2>{cards}</section>'
    if tiles:
        heads.append(f'<a href="#objects">{len(tiles)} worst objects</a>')
        body += _objects_html(tiles, {case.file_name: number for number, case in enumerate(cases + best, start=1)})
    return _PAGE.format(title=escape(title), style=_STYLE, heads=" · ".join(heads), body=body)


def _figures_html(figures: Mapping[str, str]) -> str:
    parts = [f"<article><h3>{escape(heading)}</h3>{figure}</article>" for heading, figure in figures.items()]
    return f'<section id="figures">{"".join(parts)}</section>' if parts else ""


def _case_html(number: int, case: Case) -> str:
    path = Path(case.file_name)
    parts = [f'<article id="image-{number}"><h3 title="{escape(str(path))}"><b>{number}</b>{escape(path.name)}</h3>']
    for task, pictures in case.rows.items():
        score = f"{_TASKS[task]} {case.scores[task]:.2f}" if task in case.scores else "not scored"
        parts.append(f'<p>{task.capitalize()} <span>{score}</span></p><div class="row">')
        for name, head in zip((case.image, *pictures), ("Image", "Ground truth", "Prediction"), strict=True):
            url = f"pictures/{quote(name or '')}"
            picture = f'<a href="{url}"><img src="{url}" alt="{head}" loading="lazy"></a>' if name else "none"
            parts.append(f"<figure><figcaption>{head}</figcaption>{picture}</figure>")
        parts.append("</div>")
    return "".join([*parts, "</article>"])


def _objects_html(tiles: Mapping[str, Tile], numbers: Mapping[str, int]) -> str:
    parts = [
        f'<p class="key"><i style="background:rgb{TRUTH_RGB}"></i>ground truth'
        f'<i style="background:rgb{GUESS_RGB}"></i>prediction, scored {MIN_SCORE} or more</p><div class="tiles">'
    ]
    for file, tile in tiles.items():
        name = escape(Path(tile.file_name).name)
        origin = f'<a href="#image-{numbers[tile.file_name]}">{name}</a>' if tile.file_name in numbers else name
        picture = f'<img src="pictures/{file}" alt="{escape(tile.caption)}" loading="lazy">'
        parts.append(
            f"<figure>{picture}<figcaption>{escape(tile.caption)}<small>{origin}</small></figcaption></figure>"
        )
    return f'<section id="objects"><h2>Worst objects</h2>{"".join(parts)}</div></section>'


def _results_html(results: Mapping[str, Any]) -> str:
    """A table for each task; metrics named ``metric-class`` fold away, a row for each class."""
    parts = []
    for task, metrics in results.items():
        parted = {name: found.groups() for name in metrics if (found := _OF_CLASS.fullmatch(name))}
        whole = {name: value for name, value in metrics.items() if name not in parted}
        heads, classes = (dict.fromkeys(pair[i] for pair in parted.values()) for i in (0, 1))
        parts.append(f"<h3>{escape(task)}</h3>{_table_html(whole, [whole.values()])}")
        if classes:
            rows = [[name, *(metrics.get(f"{head}-{name}", np.nan) for head in heads)] for name in classes]
            parts.append(f"<details><summary>{len(rows)} classes</summary>{_table_html(['', *heads], rows)}</details>")
    return f'<section id="results"><h2>Results</h2>{"".join(parts)}</section>' if parts else ""


def _table_html(heads: Iterable[str], rows: Iterable[Iterable[str | float]]) -> str:
    texts = [[v if isinstance(v, str) else "–" if np.isnan(v) else f"{v:.2f}" for v in row] for row in rows]
    lines = [("th", heads), *(("td", row) for row in texts)]
    body = "".join(f"<tr>{''.join(f'<{tag}>{escape(text)}' for text in line)}" for tag, line in lines)
    return f'<div class="scroll"><table>{body}</table></div>'


_STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1c2128; --soft: #646d7a; --line: #e1e4e9;
  --link: #0969da }
@media (prefers-color-scheme: dark) { :root { --ground: #13161b; --card: #1c2026; --ink: #e4e8ee; --soft: #97a1af;
  --line: #2c323b; --link: #6cb2ff } }
* { box-sizing: border-box; margin: 0 }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1440px;
  margin: auto; padding: 28px 20px 60px }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
h1, h3 { overflow-wrap: anywhere } h1 { font-size: 24px; line-height: 1.3 } h3 { font-size: 15px; font-weight: 600 }
header, section { margin-bottom: 32px } h2 { font-size: 18px; margin-bottom: 12px }
article, #results { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px;
  margin-bottom: 16px }
h3 b { display: inline-block; min-width: 1.6em; margin-right: 8px; color: var(--soft); font-weight: 500 }
article p { margin: 12px 0 6px; font-weight: 600 } p span { color: var(--soft); font-weight: 400; margin-left: 8px }
.row { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px; align-items: start }
figure, figcaption { color: var(--soft); font-size: 13px } .row figcaption { margin-bottom: 3px }
img { display: block; width: 100%; max-height: 85vh; object-fit: contain; object-position: 0 0; border-radius: 4px }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 16px 12px }
.tiles img { aspect-ratio: 1; object-position: center; background: var(--line) }
.tiles figcaption { color: var(--ink); margin-top: 4px }
small { display: block; color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.key { color: var(--soft); margin-bottom: 12px } .key i ~ i { margin-left: 18px }
.key i { display: inline-block; width: 18px; height: 4px; border-radius: 2px; margin: 0 6px 3px 0 }
.scroll { overflow-x: auto; margin: 6px 0 12px } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 5px 20px 5px 0; text-align: right; border-bottom: 1px solid var(--line) }
th { font-weight: 500; color: var(--soft); font-size: 13px }
#figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 16px;
  align-items: start } #figures article { margin: 0 } #figures h3 { margin-bottom: 10px }
svg { display: block; max-width: 460px; font-size: 12px } svg text:not([fill]) { fill: var(--soft) }
.grid { stroke: var(--line); fill: none }
.bars { display: grid; grid-template-columns: minmax(0, 12em) 1fr 4em; gap: 3px 10px; font-size: 13px;
  align-items: center; max-height: 460px; overflow-y: auto }
.bars span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.bars i { height: 12px; border-radius: 3px; background: var(--line) } .bars em { text-align: right; font-style: normal }
.bars b { display: block; height: 100%; border-radius: 3px; background: var(--link) }
details :is(th, td):first-child { text-align: left } summary { cursor: pointer; color: var(--link) }
@media (max-width: 720px) { .row { grid-template-columns: minmax(0, 1fr) } body { padding: 16px 12px 40px } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><header><h1>{title}</h1><p>{heads}</p></header>
{body}
</body></html>
"""
