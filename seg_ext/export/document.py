"""The description inside an exported file: what the input has to be, what the output means, the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata

from seg_ext.data.augmentation import Resize, ResizeShortestEdge
from seg_ext.errors import UserError
from seg_ext.export.graph import Graph

VERSION = 1


def describe(
    graph: Graph, *, image_format: str, augmentations: Sequence[T.Augmentation], metadata: Metadata, ignore: int
) -> dict[str, Any]:
    """All that a program needs beside the file, as plain JSON.

    Args:
        graph: what is exported.
        image_format: INPUT.FORMAT.
        augmentations: of test images.
        metadata: of the data that the classes come from.
        ignore: label that stands for no class in ground truth.

    Returns:
        ``version``; ``task``; ``input``: ``layout``, ``type``, ``channels``, ``range`` of raw values, ``mean`` and
        ``std`` and whether they are applied ``inside``, ``resize`` steps before it, open axes; ``outputs``:
        ``name``, ``layout``; ``classes`` and ``things``; ``colors``; ``label_map``: from ids in the data's
        own files; ``ignore``.
    """
    classes = list(metadata.get("stuff_classes") or ())
    colors = metadata.get("stuff_colors")
    label_map = metadata.get("label_map") or metadata.get("stuff_dataset_id_to_contiguous_id")
    return {
        "version": VERSION,
        "task": graph.task,
        "input": {
            "layout": graph.layout,
            "type": "uint8" if graph.preprocessing else "float32",
            "channels": image_format,
            "range": None if image_format == "BANDS" else [0, 255],
            "mean": graph.pixel_mean.flatten().tolist(),
            "std": graph.pixel_std.flatten().tolist(),
            "inside": graph.preprocessing,
            "resize": resize_steps(augmentations),
            "dynamic": list(graph.dynamic.values()),
        },
        "outputs": [{"name": name, "layout": layout} for name, layout in graph.outputs.items()],
        "classes": classes,
        "things": list(metadata.get("thing_classes") or ()) if graph.task != "semantic" else [],
        "colors": None if colors is None else [[int(value) for value in color] for color in colors],
        "label_map": _plain_map(label_map),
        "ignore": ignore,
    }


def resize_steps(augmentations: Sequence[T.Augmentation]) -> list[dict[str, Any]]:
    """``{"shortest": pixels, "longest": pixels}`` or ``{"size": [height, width]}``, in order; empty for none.

    Raises:
        UserError: something that is no resizing.
    """
    steps: list[dict[str, Any]] = []
    for step in augmentations:
        known: Any = step
        if isinstance(step, Resize):
            steps.append({"size": [int(side) for side in known.size]})
        elif isinstance(step, ResizeShortestEdge):
            if known.short_edge_length[0]:
                steps.append({"shortest": int(known.short_edge_length[0]), "longest": int(known.max_size)})
        else:
            raise UserError(f"INPUT.AUGMENTATIONS_TEST: {type(step).__name__} cannot be written into a file")
    return steps


def _plain_map(label_map: Mapping[Any, Any] | None) -> dict[str, int] | None:
    return {str(raw): int(label) for raw, label in label_map.items()} if isinstance(label_map, Mapping) else None
