"""Looking at one image and its annotations: what is wrong, and the counts that the report adds up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seg_ext.data.check.faults import FAULTS, Finding
from seg_ext.data.check.objects import Objects, check_annotations, check_segments, count_ids
from seg_ext.data.check.source import Record, Source
from seg_ext.data.files import is_numpy, read_numpy
from seg_ext.data.image_io import read_image
from seg_ext.data.label_io import read_panoptic_ids, read_record_label, read_stored_ids
from seg_ext.data.label_map import label_intervals, map_ids
from seg_ext.data.palette import palette
from seg_ext.errors import UserError

Array = NDArray[Any]

_LUMA = np.array([19595, 38470, 7471])  # Pillow's, in 1/65536
_MOST_LUMA = 64  # colours: more of them make nearly every value a brightness
_SATURATED = 200  # ids in one label map of 8 bits that ends at 255
_FLAT = 1e-6  # standard deviation of one value, rounding included, as a share of it
_SHOWN = 8  # ids in one line
_VOID_RGB = (224, 224, 192)  # VOC's colour of 255


class Kind(NamedTuple):
    """What a model takes: INPUT.FORMAT and the number of channels."""

    format: str
    channels: int


@dataclass(frozen=True)
class Rules:
    """What a data set's files are held against.

    Attributes:
        metadata: detectron2's.
        classes: names of the semantic classes.
        things: names of the instances' classes.
        ignore: train id that does not count.
        image_format: INPUT.FORMAT; None for BGR, and BANDS where that does not fit.
        bands: that the model takes; None for any number.
    """

    metadata: Any
    classes: tuple[str, ...]
    things: tuple[str, ...]
    ignore: int
    image_format: str | None = None
    bands: int | None = None

    @property
    def thing_ids(self) -> list[int]:
        """Classes of instances that categories map to; all where nothing is said about categories."""
        table = self.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        return sorted({i for i in table.values() if 0 <= i < len(self.things)}) or list(range(len(self.things)))

    @classmethod
    def of(cls, source: Source, *, image_format: str | None = None, bands: int | None = None) -> Rules:
        """Those of a data set."""
        meta = source.metadata
        stuff, things = tuple(meta.get("stuff_classes") or ()), tuple(meta.get("thing_classes") or ())
        return cls(meta, stuff, things, meta.get("ignore_label", 255), image_format, bands)

    def luma(self) -> list[set[int]]:
        """Brightness of the data set's and of VOC's colours."""
        count = len(self.classes)
        sets = (self.metadata.get("stuff_colors") or palette(count), [*palette(count), _VOID_RGB])
        return [set((np.array(colors) @ _LUMA + 32768 >> 16).tolist()) for colors in sets if count <= _MOST_LUMA]


@dataclass
class Scan:
    """What one record showed; arrays of a few numbers a class and channel, never pixels."""

    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None  # of the image
    kind: Kind | None = None
    mean: Array | None = None  # (C,)
    std: Array | None = None  # (C,)
    digest: bytes | None = None  # of the decoded image; None where it is blank
    pixels: dict[int, int] | None = None  # by train id, the ignored one included
    binary: str | None = None  # "masked": ids {0, 255} alone; "both": 255 beside a foreground id
    narrow: bool | None = None  # label map of 8 bits; None where that does not matter
    objects: Objects | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong but for warnings."""
        return all(FAULTS[finding.code].severity == "warning" for finding in self.findings)


def scan_record(record: Record, rules: Rules) -> Scan:
    """Look at one record; what is wrong with its files is in the result and never raises."""
    scan = Scan()
    _scan_image(record, rules, scan)
    if "sem_seg_file_name" in record:
        in_panoptic = record["sem_seg_file_name"] == record.get("pan_seg_file_name")  # which is looked at for itself
        label = Scan(size=scan.size) if in_panoptic else scan
        _scan_label(record, rules, label)
        scan.pixels = label.pixels
    if "pan_seg_file_name" in record:
        _scan_panoptic(record, rules, scan)
    size = scan.size
    if size is None and {"height", "width"} <= record.keys():
        size = record["height"], record["width"]
    if record.get("annotations") is not None and size is not None:
        details, scan.objects = check_annotations(record["annotations"], size, rules.things)
        scan.findings += [Finding(code, record["file_name"], text) for code, text in details]
    return scan


def _scan_image(record: Record, rules: Rules, scan: Scan) -> None:
    path = record["file_name"]
    if not Path(path).is_file():
        scan.findings.append(Finding("missing_image", path))
        return
    try:
        image, format = _read(path, rules)
    except UserError as error:
        scan.findings.append(Finding("nan_pixels" if "NaN" in error.line else "unreadable_image", *_named(path, error)))
        return
    height, width, channels = image.shape
    scan.size, scan.kind = (height, width), Kind(format, channels)
    stated = record.get("height", height), record.get("width", width)
    if stated != scan.size:
        detail = f"recorded {stated[1]}x{stated[0]}, file {width}x{height}"
        scan.findings.append(Finding("recorded_size", path, detail))
    mean, std = cv2.meanStdDev(image)
    scan.mean, scan.std = mean.ravel(), std.ravel()
    if (scan.std <= _FLAT * (1 + np.abs(scan.mean))).all():
        scan.findings.append(Finding("blank_image", path, f"value {', '.join(f'{v:g}' for v in scan.mean)}"))
    else:
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
        digest.update(repr((image.shape, image.dtype.str)).encode())
        scan.digest = digest.digest()


def _read(path: str, rules: Rules) -> tuple[Array, str]:
    if rules.image_format is not None:
        return read_image(path, rules.image_format, bands=rules.bands), rules.image_format
    try:
        return read_image(path, "BGR"), "BGR"
    except UserError:
        return read_image(path, "BANDS"), "BANDS"


def _named(path: str, error: UserError) -> tuple[str, str]:
    return path, error.line.removeprefix(f"{path}: ").partition("; a label map is")[0]


def _scan_label(record: Record, rules: Rules, scan: Scan) -> None:
    path = record["sem_seg_file_name"]
    if not Path(path).is_file():
        scan.findings.append(Finding("missing_label", path))
        return
    try:
        raw, labels = _read_ids(record, rules)
    except UserError as error:
        scan.findings.append(Finding(_label_code(error), *_named(path, error)))
        return
    if scan.size is not None and labels.shape != scan.size:
        detail = f"{labels.shape[1]}x{labels.shape[0]}, its image {scan.size[1]}x{scan.size[0]}"
        scan.findings.append(Finding("size_mismatch", path, detail))
    pixels = count_ids(labels)
    stored = pixels if raw is labels else count_ids(raw)
    if not pixels.keys() - {rules.ignore}:
        scan.findings.append(Finding("all_ignored", path))
    if not _has_colors(record, rules):
        scan.binary = _binary(stored, _label_map(record, rules))
    wrong = {i: n for i, n in pixels.items() if not (0 <= i < len(rules.classes) or i == rules.ignore)}
    if wrong and rules.classes and scan.binary != "masked":
        is_luma = any(stored.keys() <= values for values in rules.luma())
        shown = ", ".join(f"{i} ({n} pixels)" for i, n in list(wrong.items())[:_SHOWN])
        detail = f"ids {shown}{', ...' * (len(wrong) > _SHOWN)}; takes 0..{len(rules.classes) - 1}, {rules.ignore}"
        scan.findings.append(Finding("label_is_luma" if is_luma else "ids_out_of_range", path, detail))
    ranges = any(isinstance(key, str) for key in _label_map(record, rules))
    if len(rules.classes) > 256 or ranges:
        scan.narrow = _is_narrow(path)
    if ranges and scan.narrow and max(stored) == 255 and len(stored) > _SATURATED:
        scan.findings.append(Finding("truncated_ids", path, f"{len(stored)} ids up to 255 in 8 bits"))
    scan.pixels = pixels


def _binary(stored: Mapping[int, int], label_map: Mapping[Any, int]) -> str | None:
    if 255 not in stored or 255 in label_map or any(isinstance(key, str) for key in label_map):
        return None
    return "both" if stored.keys() - {0, 255} else "masked"


def _label_map(record: Record, rules: Rules) -> Mapping[Any, int]:
    return record.get("sem_seg_label_map") or rules.metadata.get("label_map") or {}


def _has_colors(record: Record, rules: Rules) -> bool:
    return bool(record.get("sem_seg_label_colors") or rules.metadata.get("label_colors"))


def _read_ids(record: Record, rules: Rules) -> tuple[Array, Array]:
    """Ids as they are stored, and train ids; of label maps in colour or one-hot only the latter, twice."""
    raw = None if _has_colors(record, rules) else _stored_ids(record)
    if raw is not None:
        label_map = _label_map(record, rules)
        return raw, map_ids(raw, label_intervals(label_map)) if label_map else raw
    count = len(rules.classes) or None
    labels = read_record_label(record, rules.metadata, num_classes=count, ignore=rules.ignore)
    return labels, labels


def _stored_ids(record: Record) -> Array | None:
    """None of a label map that is one-hot or damaged, which reading it by its rules tells apart."""
    try:
        return read_stored_ids(record)
    except UserError:
        return None


def _label_code(error: UserError) -> str:
    marks = {"RGB pixels;": "label_is_rgb", "not in label_colors": "unknown_color", "not keep ids": "label_is_lossy"}
    return next((code for mark, code in marks.items() if mark in error.line), "unreadable_label")


def _is_narrow(path: str) -> bool:
    if is_numpy(path):
        return read_numpy(path).dtype.itemsize == 1
    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L", "P")
    except OSError:
        return False  # compressed in a way that Pillow does not know


def _scan_panoptic(record: Record, rules: Rules, scan: Scan) -> None:
    path, segments = record["pan_seg_file_name"], record.get("segments_info") or []
    if not Path(path).is_file():
        scan.findings.append(Finding("missing_label", path))
        return
    try:
        ids = read_panoptic_ids(path)
    except UserError as error:
        scan.findings.append(Finding("unreadable_label", *_named(path, error)))
        return
    if scan.size is not None and ids.shape != scan.size:
        detail = f"{ids.shape[1]}x{ids.shape[0]}, its image {scan.size[1]}x{scan.size[0]}"
        scan.findings.append(Finding("size_mismatch", path, detail))
    details, counts = check_segments(ids, segments)
    scan.findings += [Finding(code, path, text) for code, text in details]
    if not counts:
        scan.findings.append(Finding("all_ignored", path))
    if record.get("annotations") is None:
        things = [s for s in segments if s.get("isthing") and not s.get("iscrowd") and s.get("id") in counts]
        areas = np.array([counts[s["id"]] for s in things], float)
        scan.objects = Objects(np.array([s["category_id"] for s in things], np.int64), areas, int(areas.sum()))
    if "sem_seg_file_name" not in record:
        index = {name: i for i, name in enumerate(rules.classes)}
        scan.pixels = {rules.ignore: int(ids.size - sum(counts.values()))}
        for segment in segments:
            names, category = rules.things if segment.get("isthing") else rules.classes, segment.get("category_id", -1)
            found = index.get(names[category]) if 0 <= category < len(names) else None
            if found is not None:
                scan.pixels[found] = scan.pixels.get(found, 0) + counts.get(segment.get("id"), 0)
