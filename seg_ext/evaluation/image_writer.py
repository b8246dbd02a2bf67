"""The files of one predicted image: label maps, overlays, panoptic PNGs, GeoJSON, probabilities; and its JSON rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from pycocotools import mask as mask_util
from torch import Tensor

from seg_ext.data.image_io import read_picture
from seg_ext.data.label_io import write_label
from seg_ext.errors import UserError
from seg_ext.evaluation.categories import dataset_ids
from seg_ext.evaluation.coco_engine import encode_masks
from seg_ext.evaluation.geojson import read_georeference, scene_geojson
from seg_ext.evaluation.output_files import make_folder, replacing, write_array, write_picture
from seg_ext.evaluation.uncertainty import write_uncertainty
from seg_ext.visualize import Array, Scene, class_name, draw_scene, scene_from_output, stuff_colors

KINDS = ("labels", "ids", "overlay", "json", "geojson", "probabilities", "uncertainty")
MIN_SCORE = 0.5  # of the instances in overlays and GeoJSON

Rows = dict[str, Any]


class ImageWriter:
    """Writes below a folder, for an image called ``x``:

    "labels": ``labels/x.png``, semantic ids in the data set's colours where they fit into 8 bits; "ids": ``ids/x.png``,
    the same as 8 or 16 bit grey; "overlay": ``overlay/x_<task>.png``; "json": ``panoptic/x.png``, where id =
    R + 256 G + 65536 B, beside the rows of :meth:`write`; "geojson": ``geojson/x.geojson``, on the map where the image
    is a GeoTIFF; "probabilities": ``probabilities/x.npy``, (K, H, W) float32; "uncertainty":
    ``uncertainty/x_<map>.tif``, (H, W) float32, and ``.png``, where the predictor gives them. All have the height and
    width of the image as it was read: upright.
    """

    def __init__(self, output_dir: str | os.PathLike[str], metadata: Metadata, *, write: Collection[str]) -> None:
        """Make the folder.

        Args:
            output_dir: made if it is missing.
            metadata: names, colours and category ids of the data set.
            write: some of :data:`KINDS`.

        Raises:
            UserError: another kind of file is asked for, or the folder cannot be written.
        """
        unknown = sorted(set(write) - set(KINDS))
        if unknown:
            raise UserError(f"cannot write {unknown}; known kinds: {', '.join(KINDS)}")
        self.folder = Path(output_dir)
        self.metadata = metadata
        self.kinds = frozenset(write)
        make_folder(self.folder)

    def keep(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`write` needs of an output, in the host's memory: labels in place of scores, which are large."""
        kept = {key: _on_host(value) for key, value in output.items() if key != "sem_seg"}
        if "sem_seg" in output:
            if "sem_seg_labels" not in kept:  # argmax(0) takes six times as long on the CPU
                kept["sem_seg_labels"] = output["sem_seg"].max(0).indices.cpu()
            if "probabilities" in self.kinds:
                kept["probabilities"] = output["sem_seg"].float().softmax(0).cpu()
        return kept

    def write(
        self,
        name: str,
        image_path: str | os.PathLike[str],
        image: Array | None,
        output: Mapping[str, Any],
        *,
        file: str | None = None,
        show: Callable[[dict[str, Array]], None] | None = None,
    ) -> Rows:
        """Write the files of one image.

        Args:
            name: of the files, without folder and suffix.
            image_path: what the JSON calls the image.
            image: (H, W, 3) RGB uint8; None reads it from the path if an overlay is to be drawn.
            output: what the model returned for it.
            file: that the image is part of, if it is not at ``image_path``.
            show: takes the overlays, by task and without legends, in place of files.

        Returns:
            "image": COCO's entry of the image without id; with kind "json" also "annotations", of its instances, and
            "panoptic", of its segments, where it has them, without ids of image and annotation.

        Raises:
            UserError: the output has no task in it, or a file cannot be written or read.
        """
        output = self.keep(output)
        scene = scene_from_output(output, min_score=MIN_SCORE)
        sizes = [a.shape for a in (scene.semantic, scene.panoptic and scene.panoptic[0]) if a is not None]
        sizes += [output["instances"].image_size] if "instances" in output else []
        if not sizes:
            raise UserError(f"{image_path}: the model gives {sorted(output)}, takes sem_seg, instances or panoptic_seg")
        height, width = (int(side) for side in sizes[0])
        rows: Rows = {"image": {"file_name": str(image_path), "height": height, "width": width}}
        self._write_labels(name, scene)
        self._write_maps(name, output)
        if "geojson" in self.kinds:
            place = read_georeference(file or str(image_path))
            with replacing(self.folder / "geojson" / f"{name}.geojson") as path, path.open("w") as stream:
                stream.writelines(scene_geojson(scene, self.metadata, georeference=place))
        if "overlay" in self.kinds:
            image = read_picture(str(image_path)) if image is None else image
            pictures = draw_scene(image, scene, self.metadata, legend=show is None)
            if show is not None:
                show(pictures)
            else:
                for task, picture in pictures.items():
                    write_picture(self.folder / "overlay" / f"{name}_{task}.png", picture)
        if "json" in self.kinds:
            if "instances" in output:
                rows["annotations"] = _annotations(output["instances"], self.metadata)
            if scene.panoptic is not None:
                rows["panoptic"] = self._write_panoptic(name, *scene.panoptic)
        return rows

    def _write_labels(self, name: str, scene: Scene) -> None:
        if scene.semantic is None:
            return
        if "labels" in self.kinds:
            colors = stuff_colors(self.metadata, int(scene.semantic.max()) + 1).tolist()
            with replacing(self.folder / "labels" / f"{name}.png") as path:
                write_label(path, scene.semantic, colors if len(colors) <= 256 else None)
        if "ids" in self.kinds:
            with replacing(self.folder / "ids" / f"{name}.png") as path:
                write_label(path, scene.semantic)

    def _write_maps(self, name: str, output: Mapping[str, Any]) -> None:
        if "probabilities" in output:
            write_array(self.folder / "probabilities" / f"{name}.npy", output["probabilities"].numpy())
        if "uncertainty" in self.kinds:
            classes = len(self.metadata.get("stuff_classes") or ())
            write_uncertainty(self.folder / "uncertainty", name, output.get("uncertainty", {}), classes=classes)

    def _write_panoptic(self, name: str, ids: Array, segments: list[dict[str, Any]]) -> Rows:
        colored = np.ascontiguousarray(ids, "<i4")[..., None].view(np.uint8)[..., :3]  # the low bytes, R first
        write_picture(self.folder / "panoptic" / f"{name}.png", colored)
        area = np.bincount(ids.ravel(), minlength=max((s["id"] for s in segments), default=0) + 1)
        info = [
            {
                "id": int(s["id"]),
                "category_id": dataset_ids(self.metadata, "thing" if s["isthing"] else "stuff")[s["category_id"]],
                "isthing": int(s["isthing"]),
                "area": int(area[s["id"]]),
                **({"score": round(float(s["score"]), 5)} if "score" in s else {}),
            }
            for s in segments
        ]
        return {"file_name": f"{name}.png", "segments_info": info}


def _on_host(value: Any) -> Any:
    """Tensors and instances, and those in tuples and mappings, in the host's memory; the rest as it is."""
    if isinstance(value, Tensor | Instances):
        return value.to("cpu")
    if isinstance(value, Mapping):
        return {key: _on_host(part) for key, part in value.items()}
    return tuple(map(_on_host, value)) if isinstance(value, tuple) else value


def _annotations(found: Instances, metadata: Metadata) -> list[Rows]:
    """A COCO annotation without ids for each of the instances."""
    names, ids = metadata.get("thing_classes") or (), dataset_ids(metadata, "thing")
    boxes = found.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    rles = encode_masks(found.pred_masks, "pycocotools") if found.has("pred_masks") else [None] * len(found)
    rows = []
    for box, score, category, rle in zip(
        boxes.tolist(), found.scores.tolist(), found.pred_classes.tolist(), rles, strict=True
    ):
        row = {
            "category_id": ids[category],
            "category_name": class_name(names, category),
            "bbox": [round(side, 2) for side in box],
            "score": round(score, 5),
            "area": round(box[2] * box[3], 2) if rle is None else int(mask_util.area(rle)),
            "iscrowd": 0,
        }
        if rle is not None:
            row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        rows.append(row)
    return rows
