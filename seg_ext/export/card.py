"""Model cards: what a model is, what it scored on which data and when, what it must not be asked; JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seg_ext.checkpoint.sidecar import flat_scores
from seg_ext.errors import UserError
from seg_ext.evaluation.output_files import replacing

VERSION = 1
Card = dict[str, Any]

# A type, a tuple of types, a list of what its entries are, or a dict of keys; "key?" may be missing, `dict` is free.
SCHEMA: dict[str, Any] = {
    "card": int,
    "name": str,
    "task": str,
    "created": str,
    "versions": dict,
    "classes": {"semantic?": [str], "instance?": [str]},
    "metrics": [{"data": str, "date": str, "scores": dict, "source": str}],
    "training": {"data": [str], "config": str},
    "licence": {"data": str, "weights": str},
    "preprocessing": {"channels": str, "mean": [(int, float)], "std": [(int, float)], "resize": [dict]},
    "export?": {
        "file": str,
        "format": str,
        "bytes": int,
        "sha256": str,
        "dynamic": [str],
        "checks": [
            {"batch": int, "height": int, "width": int, "difference": (float, int, type(None)), "agreement": float}
        ],
    },
    "int8?": {
        "bytes": int,
        "float_bytes": int,
        "latency_ratio": float,
        "miou": float,
        "float_miou": float,
        "calibration": {"data": str, "images": int},
    },
    "limits": [str],
}

LICENCES = {  # of the annotations, by the beginning of a data set's name, as their publishers state them
    "coco_": "COCO annotations: CC BY 4.0; the images are Flickr's, each with its own",
    "coco_stuff": "COCO-Stuff annotations: CC BY 4.0; the images are Flickr's, each with its own",
    "nuclei_": "StarDist's example image: BSD-3-Clause",
}
UNSTATED = "not stated"


def check_card(card: Mapping[str, Any]) -> None:
    """Hold a card against :data:`SCHEMA`.

    Raises:
        UserError: the first key that is missing, unknown or of another type.
    """
    problem = _problem(card, SCHEMA, "")
    if problem:
        raise UserError(f"model card: {problem}")


def licence_of(data: list[str]) -> str:
    """The stated licences of data sets, by name."""
    found = []
    for name in data:
        prefixes = [prefix for prefix in LICENCES if name.startswith(prefix)]
        found.append(LICENCES[max(prefixes, key=len)] if prefixes else f"{name}: {UNSTATED}")
    return "; ".join(dict.fromkeys(found)) or UNSTATED


def write_card(card: Card, stem: Path) -> tuple[Path, Path]:
    """Check a card and write ``STEM.card.json`` and ``STEM.card.md``, each whole or not at all.

    Raises:
        UserError: it does not fit :data:`SCHEMA`, or cannot be written.
    """
    check_card(card)
    paths = stem.with_name(f"{stem.name}.card.json"), stem.with_name(f"{stem.name}.card.md")
    for path, text in zip(
        paths, (json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n", markdown(card)), strict=True
    ):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def markdown(card: Card) -> str:
    """The card to read."""
    lines = [f"# {card['name']}", "", f"{card['task'].capitalize()} segmentation; card of {card['created']}.", ""]
    lines += ["## Classes", ""]
    for kind, names in card["classes"].items():
        lines.append(f"- {kind} ({len(names)}): {', '.join(names)}")
    lines += ["", "## Scores", ""]
    rows = [
        (m["data"], m["date"], key, value) for m in card["metrics"] for key, value in flat_scores(m["scores"]).items()
    ]
    if rows:
        lines += ["| data | date | metric | value |", "|---|---|---|---|"]
        lines += [f"| {data} | {date} | {key} | {_number(value)} |" for data, date, key, value in rows]
    else:
        lines.append("None recorded.")
    lines += ["", "## Data and licences", ""]
    lines.append(f"- trained on: {', '.join(card['training']['data']) or UNSTATED}")
    lines += [f"- licence of the {key}: {value}" for key, value in card["licence"].items()]
    lines += ["", "## Input", ""]
    lines += [f"- {key}: {value}" for key, value in card["preprocessing"].items()]
    lines += _export_lines(card) + _int8_lines(card)
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in card["limits"])]
    lines += ["", "## Made with", "", *(f"- {name} {value}" for name, value in card["versions"].items())]
    lines += ["", "<details><summary>Training config</summary>", "", "```yaml", card["training"]["config"].rstrip()]
    return "\n".join([*lines, "```", "", "</details>", ""])


def _export_lines(card: Card) -> list[str]:
    if "export" not in card:
        return []
    export = card["export"]
    lines = ["", "## File", "", f"- {export['file']}: {export['format']}, {export['bytes']:,} bytes"]
    lines += [f"- SHA-256 {export['sha256']}", f"- open axes: {', '.join(export['dynamic'])}", ""]
    lines += ["| batch | height | width | largest difference from the model | equal labels |", "|---|---|---|---|---|"]
    for c in export["checks"]:
        difference = "" if c["difference"] is None else f"{c['difference']:.1e}"
        lines.append(f"| {c['batch']} | {c['height']} | {c['width']} | {difference} | {c['agreement']:.4%} |")
    return lines


def _int8_lines(card: Card) -> list[str]:
    if "int8" not in card:
        return []
    found = card["int8"]
    return [
        "",
        "## int8",
        "",
        f"- size: {found['bytes']:,} of {found['float_bytes']:,} bytes",
        f"- latency: {found['latency_ratio']:.2f} of float32's, on the CPU it was made on",
        f"- mIoU: {found['miou']:.2f}, float32 {found['float_miou']:.2f}",
        f"- calibrated on {found['calibration']['images']} images of {found['calibration']['data']}",
    ]


def _problem(value: Any, schema: Any, where: str) -> str:
    """What is wrong first; empty where all fits."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{where} is {type(value).__name__}; takes a list"
        return next((p for i, x in enumerate(value) if (p := _problem(x, schema[0], f"{where}[{i}]"))), "")
    if isinstance(schema, dict):
        if not isinstance(value, Mapping):
            return f"{where or 'it'} is {type(value).__name__}; takes an object"
        known = {key.removesuffix("?") for key in schema}
        missing = [key for key in schema if not key.endswith("?") and key not in value]
        unknown = [key for key in value if key not in known]
        if missing or unknown:
            return f"{f'{where}.' if where else ''}{(missing or unknown)[0]} is {'missing' if missing else 'unknown'}"
        below = ((key.removesuffix("?"), inner) for key, inner in schema.items() if key.removesuffix("?") in value)
        found = (_problem(value[key], inner, f"{where}.{key}".lstrip(".")) for key, inner in below)
        return next((problem for problem in found if problem), "")
    if isinstance(value, bool) or not isinstance(value, schema):
        kinds = schema if isinstance(schema, tuple) else (schema,)
        return f"{where} is {value!r}; takes {' or '.join(kind.__name__ for kind in kinds)}"
    return "" if value == value else f"{where} is nan"


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
