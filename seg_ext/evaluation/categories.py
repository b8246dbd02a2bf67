"""Contiguous class ids of a model, and what the data set calls them: its own ids and names."""

from __future__ import annotations

from typing import Any

from detectron2.data.catalog import Metadata


class _Identity(dict[int, int]):
    def __missing__(self, key: int) -> int:
        return key


def dataset_ids(metadata: Metadata, kind: str) -> dict[int, int]:
    """Contiguous id -> the data set's own category id, of ``kind`` "thing" or "stuff"; the same where it has none."""
    return _Identity({v: k for k, v in (metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}).items()})


def categories(metadata: Metadata, kind: str) -> list[dict[str, Any]]:
    """COCO's categories of the "thing" or the "stuff" classes."""
    names, ids = metadata.get(f"{kind}_classes") or (), dataset_ids(metadata, kind)
    return [{"id": ids[i], "name": name, "isthing": int(kind == "thing")} for i, name in enumerate(names)]
