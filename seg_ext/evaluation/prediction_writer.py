"""Writing predictions: the files of each image, and COCO JSON for the whole run."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data.catalog import DatasetCatalog, Metadata
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from seg_ext.evaluation.categories import categories
from seg_ext.evaluation.image_writer import ImageWriter
from seg_ext.evaluation.output_files import path_hash, replacing
from seg_ext.visualize import Array


class PredictionWriter(DatasetEvaluator):
    """Writes what a model says of each image; alone, or as one evaluator in a chain (which gives no scores).

    Beside the files of :class:`seg_ext.evaluation.image_writer.ImageWriter`, ``x`` being the image's stem, it writes
    for the run ``predictions.json`` (COCO images, annotations with compressed RLE, categories) and, where there are
    panoptic results, ``panoptic.json`` (COCO panoptic format). Images of the same stem get a hash of their path
    appended.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        metadata: Metadata,
        *,
        write: Collection[str] = ("labels", "overlay", "json"),
    ) -> None:
        """Make the folder.

        Args:
            output_dir: made if it is missing.
            metadata: names, colours and category ids of the data set.
            write: some of :data:`seg_ext.evaluation.image_writer.KINDS`.

        Raises:
            UserError: another kind of file is asked for, or the folder cannot be written.
        """
        self._files = ImageWriter(output_dir, metadata, write=write)
        self._ambiguous: frozenset[str] = frozenset()
        self.reset()

    def reset(self) -> None:
        """Forget the images written so far; their files stay."""
        self._images: list[str] = []
        self._annotations: list[str] = []
        self._panoptic: list[str] = []
        self._owner: dict[str, str] = {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write a batch; an input is known by ``file_name`` and ``image_id``."""
        data_set = self._files.metadata.name
        if not self._images and data_set in DatasetCatalog:
            self._ambiguous = ambiguous_stems(record["file_name"] for record in DatasetCatalog.get(data_set))
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
        rows = self._files.write(self._name(Path(image_path)), image_path, image, output)
        image_id = len(self._images) + 1 if image_id is None else image_id
        self._images.append(json.dumps({"id": image_id, **rows["image"]}))
        self._annotations += [json.dumps({"image_id": image_id, **row}) for row in rows.get("annotations", ())]
        if "panoptic" in rows:
            self._panoptic.append(json.dumps({"image_id": image_id, **rows["panoptic"]}))

    def finish(self) -> Path:
        """Write the JSON of all images; returns its path, or the folder if no JSON was asked for."""
        folder, metadata = self._files.folder, self._files.metadata
        if "json" not in self._files.kinds:
            return folder
        numbered = (f'{{"id": {number}, {row[1:]}' for number, row in enumerate(self._annotations, start=1))
        if self._panoptic:
            write_panoptic_coco(folder / "panoptic.json", self._images, self._panoptic, metadata)
        return write_coco(folder / "predictions.json", self._images, numbered, metadata)

    def _name(self, path: Path) -> str:
        """The stem, made unique by a hash of the path where another image has it."""
        full = str(path.absolute())
        if path.stem not in self._ambiguous and self._owner.setdefault(path.stem, full) == full:
            return path.stem
        return f"{path.stem}-{path_hash(full)}"


def ambiguous_stems(paths: Iterable[str]) -> frozenset[str]:
    """The names, without folder and suffix, that several of the paths have."""
    stems = Counter(Path(path).stem for path in paths)
    return frozenset(stem for stem, count in stems.items() if count > 1)


def write_coco(path: Path, images: Iterable[str], annotations: Iterable[str], metadata: Metadata) -> Path:
    """Write rows that are JSON already, one a line, with the categories of things; returns ``path``."""
    return _write_json(path, images, annotations, categories(metadata, "thing"))


def write_panoptic_coco(path: Path, images: Iterable[str], annotations: Iterable[str], metadata: Metadata) -> Path:
    """The same with the categories of things and stuff."""
    things = categories(metadata, "thing")
    stuff = [c for c in categories(metadata, "stuff") if c["id"] not in {t["id"] for t in things}]
    return _write_json(path, images, annotations, things + stuff)


def _write_json(path: Path, images: Iterable[str], annotations: Iterable[str], described: list[dict[str, Any]]) -> Path:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for key, rows in (("images", images), ("annotations", annotations)):
            file.write(f'{"{" if key == "images" else ""}"{key}": [\n')
            file.writelines(",\n" * (number > 0) + row for number, row in enumerate(rows))
            file.write("\n],\n")
        file.write(f'"categories": {json.dumps(described)}}}\n')
    return path
