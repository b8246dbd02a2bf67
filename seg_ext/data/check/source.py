"""The records of a data set to be checked: the catalog's, and where its loader stops, read from folders and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode

from seg_ext.data.check.faults import Finding
from seg_ext.data.datasets.folder import files_by_stem
from seg_ext.data.datasets.labelme import check_labels, labelme_record, read_shapes
from seg_ext.data.datasets.split import choose_all
from seg_ext.data.image_io import image_size
from seg_ext.errors import UserError

Record = dict[str, Any]
Maps = tuple[Mapping[int, int], Mapping[int, int]]  # category id in JSON -> class, of things and of stuff

_COCO = ("coco", "coco_panoptic_seg")  # evaluator types whose JSON files are COCO's


@dataclass
class Source:
    """What is looked at of a data set.

    Attributes:
        name: of the data set.
        metadata: detectron2's.
        records: as the catalog gives them, with contiguous category ids (-1: unknown) and the JSON's own ids and areas.
        findings: what is wrong with folders and JSON files.
        looked_at: False where nothing could be read.
    """

    name: str
    metadata: Metadata
    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    looked_at: bool = True

    def find(self, code: str, file: str | Path, detail: str = "") -> None:
        """Note a fault."""
        self.findings.append(Finding(code, str(file), detail))


Reader = Callable[[Source, list[Record] | None, str], list[Record] | None]


def read_source(name: str) -> Source:
    """Load a registered data set, or what can be found of it; never raises for what is wrong with the data."""
    source = Source(name, MetadataCatalog.get(name))
    records, reason = _loaded(name)
    meta = source.metadata
    has_coco = meta.get("evaluator_type") in _COCO
    kind, annotations = meta.get("annotated_by", ("", ""))  # of a data.yaml
    if reason is not None:
        source.find("not_loaded", name, reason.removeprefix(f"data set {name}: "))
        if meta.get("pairs"):
            records = _of_pairs(source)
        elif not meta.get("image_root") or not Path(meta.image_root).is_dir():
            source.looked_at = False
            return source
    file = annotations if kind == "coco" else meta.get("json_file")
    if has_coco and file and meta.get("image_root") and (records is None or any("annotations" in r for r in records)):
        records = _guarded(_with_instances, source, records, file)
    derived = kind == "coco" and reason is not None  # not made, then
    if has_coco and meta.get("panoptic_json") and meta.get("panoptic_root") and kind != "labelme" and not derived:
        records = _guarded(_with_segments, source, records, meta.panoptic_json)
    if kind == "labelme" and records is None:
        records = _with_labelme(source, Path(annotations))
    labels = annotations if kind == "masks" else meta.get("sem_seg_root")
    if meta.get("image_root") and labels:
        records = _with_folders(source, records, labels)
    source.looked_at = records is not None
    source.records = records or []
    _check_maps(source)
    return source


def _loaded(name: str) -> tuple[list[Record] | None, str | None]:
    """The catalog's records, or why there are none: any code may stand behind a name, so any error may come."""
    try:
        records = [dict(record) for record in DatasetCatalog.get(name)]
        lacking = [i for i, record in enumerate(records) if "file_name" not in record]
        return (None, f"record {lacking[0]} has no file_name") if lacking else (records, None)
    except UserError as error:
        return None, error.line
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def _of_pairs(source: Source) -> list[Record] | None:
    """Records of an image and its label map each, whether they are there or not."""
    try:
        pairs = source.metadata.pairs()
    except (UserError, OSError):
        return None
    return [{"image_id": i, "file_name": str(image), "sem_seg_file_name": str(label)} for i, image, label in pairs]


def _guarded(read: Reader, source: Source, records: list[Record] | None, file: str) -> list[Record] | None:
    """What a reader gives; the records as they were where the file is not built as it takes it."""
    try:
        return read(source, records, file)
    except UserError:
        return records  # which images are in it is not clear, as the loader has said
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        source.find("bad_json", file, f"{type(error).__name__}: {error}")
        return records


def _with_instances(source: Source, records: list[Record] | None, file: str) -> list[Record] | None:
    """Records with the annotations of ``file`` as they are in it, or its images where there are no records."""
    content = _read(source, file, ("images", "annotations", "categories"))
    if content is None:
        return records
    for key, what in (("image", "images"), ("annotation", "annotations"), ("category", "categories")):
        _find_twice(source, f"duplicate_{key}_id", file, (entry.get("id") for entry in content[what]))
    if records is None:
        records = _listed(source, file, content["images"])
    categories = sorted(entry["id"] for entry in content["categories"] if "id" in entry)
    things = source.metadata.get("thing_dataset_id_to_contiguous_id") or {c: i for i, c in enumerate(categories)}
    listed = {entry.get("id") for entry in content["images"]}
    by_image: dict[Any, list[Record]] = {}
    for annotation in content["annotations"]:
        name = f"annotation {annotation.get('id')}"
        if annotation.get("image_id") not in listed:
            source.find("orphan_annotation", file, f"{name} of image {annotation.get('image_id')}")
        elif annotation.get("category_id") not in things:
            source.find("unknown_category", file, f"{name} of category {annotation.get('category_id')}")
        else:
            entry = {"category_id": things[annotation["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
            by_image.setdefault(annotation["image_id"], []).append(annotation | entry)
    return [record | {"annotations": by_image.get(record["image_id"], [])} for record in records]


def _with_segments(source: Source, records: list[Record] | None, file: str) -> list[Record] | None:
    """Records with the PNG and the segments that ``file`` lists for them."""
    meta = source.metadata
    content = _read(source, file, ("annotations",))
    if content is None:
        return records
    if records is None:
        records = _listed(source, file, content.get("images") or [])
    things = meta.get("thing_dataset_id_to_contiguous_id") or {}
    stuff = meta.get("stuff_dataset_id_to_contiguous_id") or {}
    _find_twice(source, "duplicate_image_id", file, (entry.get("image_id") for entry in content["annotations"]))
    annotations = {str(entry.get("image_id")): entry for entry in content["annotations"]}
    listed = {str(image.get("id")) for image in content.get("images") or ()}
    for key in sorted(annotations.keys() - listed) if listed else ():
        source.find("orphan_annotation", file, f"segments of image {key}")
    found = []
    for record in records:
        annotation = annotations.get(str(record.get("image_id")))
        if annotation is None or not {"file_name", "segments_info"} <= annotation.keys():
            source.find(
                "missing_label", record["file_name"], f"{file} has no segments of image {record.get('image_id')}"
            )
            found.append({k: v for k, v in record.items() if k != "pan_seg_file_name"})
            continue
        segments = [_segment(source, annotation, segment, (things, stuff)) for segment in annotation["segments_info"]]
        png = Path(meta.panoptic_root) / annotation["file_name"]
        found.append(record | {"pan_seg_file_name": str(png), "segments_info": segments})
    return found


def _segment(source: Source, annotation: Record, segment: Record, maps: Maps) -> Record:
    category = segment.get("category_id", -1)
    if not any(category in table for table in maps):
        detail = f"segment {segment.get('id')} of {annotation['file_name']}: category {category}"
        source.find("unknown_category", source.metadata.panoptic_json, detail)
        return segment | {"category_id": -1, "isthing": False}
    isthing = category in maps[0]
    return segment | {"category_id": maps[not isthing][category], "isthing": isthing}


def _with_labelme(source: Source, folder: Path) -> list[Record] | None:
    """Records of the split's images; a JSON file with something wrong in it gives none."""
    meta = source.metadata
    try:
        images = files_by_stem(source.name, Path(meta.image_root))
        files = {file.stem: file for file in sorted(folder.glob("*.json"))}
        chosen = meta.choose(images.get(stem, file).name for stem, file in files.items())
    except (UserError, OSError):
        return None
    records = []
    for stem, file in files.items():
        if stem not in images and file.name in chosen:
            source.find("missing_image", file, f"nothing of this name in {meta.image_root}")
        elif stem in images and images[stem].name in chosen:
            try:
                size = image_size(images[stem])
            except UserError:  # which a look at the image finds too
                records.append({"file_name": str(images[stem]), "image_id": stem})
                continue
            try:
                shapes = read_shapes(file, size)
                check_labels(source.name, {file: shapes}, meta.thing_classes)
                records.append(labelme_record(file, images[stem], shapes, meta.thing_classes, size=size))
            except UserError as error:
                text = error.line.removeprefix(f"data set {source.name}: ").removeprefix(f"{file}: ")
                marks = {"is not in classes": "unknown_category", "says its image": "recorded_size", "JSON": "bad_json"}
                source.find(next((c for mark, c in marks.items() if mark in text), "bad_annotation"), file, text)
    return records


def _with_folders(source: Source, records: list[Record] | None, label_root: str) -> list[Record] | None:
    """Records with their label maps, by name; and what has no partner, where no other data set may want it."""
    meta = source.metadata
    try:
        images, labels = (files_by_stem(source.name, Path(root)) for root in (meta.image_root, label_root))
        chosen = meta.get("choose", choose_all)(file.name for file in (labels | images).values())
    except (UserError, OSError):
        return records
    if records is None or not any("sem_seg_file_name" in record for record in records):
        found = [{"file_name": str(f), "image_id": s} for s, f in images.items() if f.name in chosen]
        records = [
            _with_label(source, record, labels, label_root) for record in (found if records is None else records)
        ]
    if meta.get("evaluator_type") == "sem_seg":
        used = {Path(record["file_name"]).stem for record in records}
        rest = {"image_root": images.keys() - used, "sem_seg_root": labels.keys() - images.keys()}
        for key, code, files in (("image_root", "unused_image", images), ("sem_seg_root", "unused_label", labels)):
            for stem in sorted(rest[key]) if not _shared(source, key) else ():
                source.find(code, files[stem])
    return records


def _with_label(source: Source, record: Record, labels: Mapping[str, Path], root: str) -> Record:
    label = labels.get(Path(record["file_name"]).stem)
    if label is None:
        source.find("missing_label", record["file_name"], f"nothing of this name in {root}")
    return record | ({"sem_seg_file_name": str(label)} if label else {})


def _shared(source: Source, key: str) -> bool:
    """Whether another data set has the same folder; of the splits of a data.yaml the first one counts alone."""
    own = _root(source.metadata, key)
    others = [name for name in DatasetCatalog.list() if _root(MetadataCatalog.get(name), key) == own]
    yaml = source.metadata.get("defined_in")
    if yaml and key == "sem_seg_root" and all(MetadataCatalog.get(name).get("defined_in") == yaml for name in others):
        return others[0] != source.name
    return len(others) > 1


def _root(meta: Metadata, key: str) -> str | None:
    kind, annotations = meta.get("annotated_by", ("", ""))
    return annotations if key == "sem_seg_root" and kind == "masks" else meta.get(key)


def _read(source: Source, file: str, keys: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        content = json.loads(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        source.find("bad_json", file, str(reason))
        return None
    for key in keys:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            source.find("bad_json", file, f"no list of objects {key!r} at the top")
            return None
    return content


def _listed(source: Source, file: str, images: list[Record]) -> list[Record]:
    records: list[Record] = []
    for image in images:
        if not {"id", "file_name"} <= image.keys():
            source.find("bad_json", file, f"an image has no id or file_name: {sorted(image)}")
            continue
        size: Record = {key: image[key] for key in ("height", "width") if key in image}
        path = Path(source.metadata.image_root) / image["file_name"]
        records.append({"file_name": str(path), "image_id": image["id"], **size})
    names = [image["file_name"] for image in images if {"id", "file_name"} <= image.keys()]
    chosen = source.metadata.get("choose", choose_all)(names)
    return [record for record, name in zip(records, names, strict=True) if name in chosen]


def _find_twice(source: Source, code: str, file: str, ids: Iterable[Any]) -> None:
    for key, count in Counter(ids).items():
        if count > 1:
            source.find(code, file, f"id {key}: {count} times" if key is not None else f"no id: {count} times")


def _check_maps(source: Source) -> None:
    """Two categories of one class, a class that no category maps to, a class that is not there; the ignored id."""
    meta = source.metadata
    for kind in ("thing", "stuff"):
        table = meta.get(f"{kind}_dataset_id_to_contiguous_id") or {}
        classes = sorted(table.values())
        names = meta.get(f"{kind}_classes") or classes
        gaps = kind == "thing" and classes != list(range(classes[0], classes[-1] + 1)) if classes else False
        if len(set(classes)) < len(classes) or gaps or (classes and not 0 <= classes[0] <= classes[-1] < len(names)):
            source.find("category_gap", source.name, f"{kind} categories map to {classes}, of {len(names)} classes")
    ignore, count = meta.get("ignore_label", 255), len(meta.get("stuff_classes") or ())
    labelled = any("sem_seg_file_name" in record for record in source.records)
    if labelled and 0 <= ignore < count:
        source.find("ignore_is_class", source.name, f"ignore_label {ignore} is class {meta.stuff_classes[ignore]!r}")
