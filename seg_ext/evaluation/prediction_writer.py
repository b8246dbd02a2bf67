"""Writing predictions: label maps, overlays, panoptic PNGs, and COCO JSON for the whole run."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import DatasetCatalog, Metadata
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as mask_util

from seg_ext.data.image_io import read_picture
from seg_ext.data.label_io import write_label
from seg_ext.errors import UserError
from seg_ext.visualize import Array, class_name, draw_scene, scene_from_output, stuff_colors

_KINDS = ("labels", "overlay", "json")


class PredictionWriter(DatasetEvaluator):
    """Writes what a model says of each image; alone, or as one evaluator in a chain (which gives no scores).

    Below ``output_dir``, for an image ``x.jpg``: ``labels/x.png`` (semantic ids, in the set's colours when they fit in
    8 bits), ``overlay/x_<task>.png``, ``panoptic/x.png`` (id = R + 256 G + 65536 B), and for the run
    ``predictions.json`` (COCO images, annotations with compressed RLE, categories) and, where there are panoptic
    results, ``panoptic.json`` (COCO panoptic format). Images of the same stem get a hash of their path appended.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], metadata: Metadata, *, write: Collection[str] = _KINDS
    ) -> None:
        """Make the folder.

        Args:
            output_dir: made if it is missing.
            metadata: names, colours and category ids of the data set.
            write: any of "labels", "overlay", "json"; panoptic PNGs belong to "json".

        Raises:
            UserError: another kind of file is asked for, or the folder cannot be written.
        """
        unknown = sorted(set(write) - set(_KINDS))
        if unknown:
            raise UserError(f"cannot write {unknown}; known kinds: {', '.join(_KINDS)}")
        self._dir = Path(output_dir)
        self._metadata = metadata
        self._kinds = frozenset(write)
        self._ambiguous: frozenset[str] = frozenset()
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            (self._dir / f".writable-{os.getpid()}").touch()
            (self._dir / f".writable-{os.getpid()}").unlink()
        except OSError as error:
            raise UserError(f"output folder {self._dir} cannot be written: {error.strerror or error}") from error
        self.reset()

    def reset(self) -> None:
        """Forget the images written so far; their files stay."""
        self._images: list[str] = []
        self._annotations: list[str] = []
        self._panoptic: list[str] = []
        self._owner: dict[str, str] = {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write a batch; an input is known by ``file_name`` and ``image_id``."""
        if not self._images and self._metadata.name in DatasetCatalog:
            stems = Counter(Path(record["file_name"]).stem for record in DatasetCatalog.get(self._metadata.name))
            self._ambiguous = frozenset(stem for stem, count in stems.items() if count > 1)
        for entry, output in zip(inputs, outputs, strict=True):
            path = entry["file_name"]
            self.write(path, None, output, image_id=entry.get("image_id", path))

    def evaluate(self) -> dict[str, Any]:
        """Gather the ranks' results, write the JSON on the main one; no scores."""
        parts = comm.gather((self._images, self._annotations, self._panoptic))
        if comm.is_main_process():
            self._images, self._annotations, self._panoptic = (sum(part, []) for part in zip(*parts, strict=True))
            self.finish()
        return {}

    def write(
        self,
        image_path: str | os.PathLike[str],
        image: Array | None,
        output: Mapping[str, Any],
        *,
        image_id: int | str | None = None,
    ) -> None:
        """Write the files of one image.

        Args:
            image_path: names the files.
            image: (H, W, 3) RGB uint8; None reads it from the path if an overlay is to be drawn.
            output: what the model returned for it.
            image_id: of the JSON; None counts from 1.

        Raises:
            UserError: the output has no task in it, or a file cannot be written or read.
        """
        scene = scene_from_output(output, min_score=0.5)
        sizes = [a.shape for a in (scene.semantic, scene.panoptic and scene.panoptic[0]) if a is not None]
        sizes += [output["instances"].image_size] if "instances" in output else []
        if not sizes:
            raise UserError(f"{image_path}: the model gives {sorted(output)}, takes sem_seg, instances or panoptic_seg")
        name = self._name(Path(image_path))
        image_id = len(self._images) + 1 if image_id is None else image_id
        height, width = (int(side) for side in sizes[0])
        row = {"id": image_id, "file_name": str(image_path), "height": height, "width": width}
        self._images.append(json.dumps(row))
        if "labels" in self._kinds and scene.semantic is not None:
            colors = stuff_colors(self._metadata, int(scene.semantic.max()) + 1).tolist()
            with replacing(self._dir / "labels" / f"{name}.png") as path:
                write_label(path, scene.semantic, colors if len(colors) <= 256 else None)
        if "overlay" in self._kinds:
            image = read_picture(str(image_path)) if image is None else image
            for task, picture in draw_scene(image, scene, self._metadata).items():
                write_picture(self._dir / "overlay" / f"{name}_{task}.png", picture)
        if "json" in self._kinds:
            if "instances" in output:
                self._annotations += _annotations(output["instances"].to("cpu"), image_id, self._metadata)
            if scene.panoptic is not None:
                self._panoptic.append(self._write_panoptic(name, image_id, *scene.panoptic))

    def finish(self) -> Path:
        """Write the JSON of all images; returns its path, or the folder if no JSON was asked for."""
        if "json" not in self._kinds:
            return self._dir
        numbered = [f'{{"id": {number}, {row[1:]}' for number, row in enumerate(self._annotations, start=1)]
        things = _categories(self._metadata, "thing")
        _write_json(self._dir / "predictions.json", self._images, numbered, things)
        if self._panoptic:
            stuff = [c for c in _categories(self._metadata, "stuff") if c["id"] not in {t["id"] for t in things}]
            _write_json(self._dir / "panoptic.json", self._images, self._panoptic, things + stuff)
        return self._dir / "predictions.json"

    def _name(self, path: Path) -> str:
        """The stem, made unique by a hash of the path where another image has it."""
        full = str(path.absolute())
        if path.stem not in self._ambiguous and self._owner.setdefault(path.stem, full) == full:
            return path.stem
        return f"{path.stem}-{path_hash(full)}"

    def _write_panoptic(self, name: str, image_id: int | str, ids: Array, segments: list[dict[str, Any]]) -> str:
        colored = np.ascontiguousarray(ids, "<i4")[..., None].view(np.uint8)[..., :3]  # the low bytes, R first
        write_picture(self._dir / "panoptic" / f"{name}.png", colored)
        area = np.bincount(ids.ravel(), minlength=max((s["id"] for s in segments), default=0) + 1)
        info = [
            {
                "id": int(s["id"]),
                "category_id": _dataset_ids(self._metadata, "thing" if s["isthing"] else "stuff")[s["category_id"]],
                "isthing": int(s["isthing"]),
                "area": int(area[s["id"]]),
                **({"score": round(float(s["score"]), 5)} if "score" in s else {}),
            }
            for s in segments
        ]
        return json.dumps({"image_id": image_id, "file_name": f"{name}.png", "segments_info": info})


def _annotations(found: Instances, image_id: int | str, metadata: Metadata) -> list[str]:
    """A COCO annotation, as JSON without id, for each of the instances."""
    names, ids = metadata.get("thing_classes") or (), _dataset_ids(metadata, "thing")
    boxes = found.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    rles = [None] * len(found)
    if found.has("pred_masks"):
        columns = found.pred_masks.bool().transpose(1, 2).contiguous().numpy().view(np.uint8)
        rles = mask_util.encode(columns.transpose(2, 1, 0))
    rows = []
    for box, score, category, rle in zip(
        boxes.tolist(), found.scores.tolist(), found.pred_classes.tolist(), rles, strict=True
    ):
        row = {
            "image_id": image_id,
            "category_id": ids[category],
            "category_name": class_name(names, category),
            "bbox": [round(side, 2) for side in box],
            "score": round(score, 5),
            "area": round(box[2] * box[3], 2) if rle is None else int(mask_util.area(rle)),
            "iscrowd": 0,
        }
        if rle is not None:
            row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        rows.append(json.dumps(row))
    return rows


class _Identity(dict[int, int]):
    def __missing__(self, key: int) -> int:
        return key


def _dataset_ids(metadata: Metadata, kind: str) -> dict[int, int]:
    """Contiguous id -> the data set's own category id."""
    return _Identity({v: k for k, v in (metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}).items()})


def _categories(metadata: Metadata, kind: str) -> list[dict[str, Any]]:
    names, ids = metadata.get(f"{kind}_classes") or (), _dataset_ids(metadata, kind)
    return [{"id": ids[i], "name": name, "isthing": int(kind == "thing")} for i, name in enumerate(names)]


def _write_json(path: Path, images: list[str], annotations: list[str], categories: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for key, rows in (("images", images), ("annotations", annotations)):
            file.write(f'{"{" if key == "images" else ""}"{key}": [\n')
            file.writelines(",\n" * (number > 0) + row for number, row in enumerate(rows))
            file.write("\n],\n")
        file.write(f'"categories": {json.dumps(categories)}}}\n')


def path_hash(path: str) -> str:
    """Eight hexadecimal digits that tell paths apart."""
    return hashlib.sha1(os.fsencode(path), usedforsecurity=False).hexdigest()[:8]


def write_picture(path: Path, picture: Array) -> None:
    """Write an (H, W, 3) RGB uint8 array as PNG, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path in the same folder for the block to write to; what it wrote then takes the place of ``path`` at once.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
