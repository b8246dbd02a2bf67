"""PASCAL VOC 2012: the augmented training set from the Semantic Boundaries Dataset; instances and panoptic maps."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from tqdm import tqdm

from seg_ext.data.datasets.voc import BACKGROUND, CLASSES, load
from seg_ext.data.derive import derive_image
from seg_ext.data.label_io import read_label, write_label
from seg_ext.data.prepare.archive import members, opened
from seg_ext.data.prepare.downloads import NAME, Download, unpack_downloads, verify, wanted
from seg_ext.data.prepare.instances import Annotations, annotate, coco_instances
from seg_ext.data.prepare.outputs import Writer, count_files, make, write, write_json
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

VOID = 255
DOWNLOADS = (
    Download(
        "VOCtrainval_11-May-2012.tar",
        "host.robots.ox.ac.uk/pascal/VOC/voc2012",
        {
            rf"VOC2012/((?:JPEGImages|SegmentationClass|SegmentationObject|Annotations)/{NAME})": r"\1",
            rf"VOC2012/(ImageSets/Segmentation/{NAME}\.txt)": r"\1",
        },
    ),
)
SBD = "benchmark.tgz"
WANTED_SBD = (
    "give --source DIR, the folder or archive benchmark_RELEASE (dataset/cls/NAME.mat, dataset/{train,val}.txt) of the"
    f" Semantic Boundaries Dataset, or put its {SBD} beside VOC2012"
)


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/VOC2012`` of the official archive, and add what that lacks; nothing that is there is changed.

    With the Semantic Boundaries Dataset, ``SegmentationClassAug/`` and ``ImageSets/Segmentation/trainaug.txt``: VOC's
    training images with VOC's own labels, and the others less VOC's validation images. From ``SegmentationObject/``,
    where it is there, ``instances_{train,val}.json``: an object's category is the class of most of its pixels; and the
    panoptic ``panoptic_{train,val}/NAME.png`` with their JSON: objects are things, the background is stuff.

    Args:
        root: folder of all data sets.
        source: VOC's archive or its folder VOCdevkit, or folder or archive benchmark_RELEASE; None to look for either
            archive in ``root``.

    Raises:
        UserError: VOC2012 is not there, nothing is to be made, or a file that cannot be read.
    """
    place = root / "VOC2012"
    lists = place / "ImageSets" / "Segmentation"
    lines = []
    is_voc = source is not None and _is_voc(source)
    written = unpack_downloads(place, source if is_voc else None, DOWNLOADS)
    source = None if is_voc else source
    if not (lists / "train.txt").is_file() or not (lists / "val.txt").is_file():
        raise UserError(f"{lists}/train.txt or val.txt not found: {wanted(root, DOWNLOADS)}")
    if source is None and (root / SBD).is_file():
        source = root / SBD
    has_objects = (place / "SegmentationObject").is_dir()
    if source is None and not has_objects:
        found = place / "SegmentationObject"
        raise UserError(f"{found} not found: {wanted(root, DOWNLOADS)}; for trainaug, {WANTED_SBD}")
    unchecked = written or has_objects and not (place / "instances_val.json").exists()  # what is made after the check
    for split in ("train", "val") if unchecked else ():
        verify(load(f"voc {split}", place, split), f"voc {split}", num_classes=len(CLASSES))
    if source is not None:
        written += _augment(place, source)
        lines.append(f"voc_sem_seg_trainaug: {len(_names(lists / 'trainaug.txt'))} images")
    for split in ("train", "val") if has_objects else ():
        file = place / f"instances_{split}.json"
        if not file.exists():
            names = _names(lists / f"{split}.txt")
            images = (_image(place, name) for name in tqdm(names, file.stem, unit="img", disable=None, leave=False))
            write_json(file, coco_instances(images, CLASSES[1:]))
            written += 1
        written += _write_panoptic(place, split)
        listed = f"voc_sem_seg_{split}, voc_instances_{split}, voc_panoptic_{split}"
        lines.append(f"{listed}: {len(_names(lists / f'{split}.txt'))} images")
    return Report(place, written > 0, lines)


def _is_voc(source: Path) -> bool:
    """Whether a source is VOC's rather than the other data set's: by its folders, or the first files of an archive."""
    if source.is_dir():
        return any((source / home / "JPEGImages").is_dir() for home in (".", "VOC2012", "VOCdevkit/VOC2012")) or any(
            (source / download.file).is_file() for download in DOWNLOADS
        )
    with members(source) as found:
        return any("VOC2012" in member.path.parts for member in islice(found, 16))


def _names(file: Path) -> list[str]:
    return file.read_text().split()


def _augment(place: Path, source: Path) -> int:
    """Write the labels and the list; the number of files written."""
    lists = place / "ImageSets" / "Segmentation"
    folder, own = place / "SegmentationClassAug", set(_names(lists / "train.txt"))
    if (lists / "trainaug.txt").exists() and count_files(folder) >= len(_names(lists / "trainaug.txt")):
        return 0
    with opened(source, place) as unpacked:
        found = sorted(unpacked.rglob("dataset/cls")) or [unpacked / "cls"]
        base = found[0].parent
        if not (base / "train.txt").is_file() or not (base / "val.txt").is_file():
            raise UserError(f"{source} holds no dataset/cls beside train.txt and val.txt: {WANTED_SBD}")
        theirs = {name for split in ("train", "val") for name in _names(base / f"{split}.txt")}
        names = sorted((own | theirs) - set(_names(lists / "val.txt")))
        outputs: dict[Path, Writer] = {
            folder / f"{name}.png": partial(_copy_label, place / "SegmentationClass" / f"{name}.png")
            if name in own
            else partial(_write_mat, base / "cls" / f"{name}.mat")
            for name in names
        }
        written = make(outputs, "voc trainaug", alone=False)
    write(lists / "trainaug.txt", lambda path: path.write_text("".join(f"{name}\n" for name in names)))
    return written + 1


def _copy_label(label: Path, path: Path) -> None:
    write_label(path, read_label(label, num_classes=len(CLASSES)))


def _write_mat(mat: Path, path: Path) -> None:
    try:
        labels = np.asarray(loadmat(mat, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{mat}: no GTcls.Segmentation: {error or type(error).__name__}") from error
    if labels.ndim != 2 or not np.isin(labels, [*range(len(CLASSES)), VOID]).all():
        raise UserError(f"{mat}: holds ids other than 0..{len(CLASSES) - 1} and {VOID}")
    write_label(path, labels)


def _write_panoptic(place: Path, split: str) -> int:
    """Number of files written: the PNGs that are missing, then the JSON file of the instances' image ids."""
    file, folder = place / f"panoptic_{split}.json", place / f"panoptic_{split}"
    if file.exists():
        return 0
    images = json.loads((place / f"instances_{split}.json").read_bytes())["images"]
    names = [Path(image["file_name"]).stem for image in images]
    outputs: dict[Path, Writer] = {folder / f"{name}.png": partial(_save_ids, place, name) for name in names}
    written = make(outputs, file.stem)
    listed = [
        {"image_id": image["id"], "file_name": f"{name}.png", "segments_info": _segments(place, name)}
        for image, name in zip(images, tqdm(names, file.stem, unit="img", disable=None, leave=False), strict=True)
    ]
    kinds = [{"id": i, "name": name, "isthing": 1} for i, name in enumerate(CLASSES[1:], 1)]
    kinds.append({"id": BACKGROUND, "name": CLASSES[0], "isthing": 0})
    write_json(file, {"images": images, "annotations": listed, "categories": kinds})
    return written + 1


def _save_ids(place: Path, name: str, path: Path) -> None:
    ids = _with_background(*_read(place, name)).astype(np.uint8)  # an image has fewer than 255 objects
    zeros = np.zeros_like(ids)
    Image.fromarray(np.stack([ids, zeros, zeros], axis=2)).save(path, format="PNG")


def _with_background(ids: NDArray[np.integer], classes: NDArray[np.integer]) -> NDArray[np.integer]:
    """Ids of the objects, after them that of the background, and 0 for what is void."""
    return np.where((ids == 0) & (classes == 0), ids.max(initial=0) + 1, ids)


def _segments(place: Path, name: str) -> list[dict[str, Any]]:
    ids, classes = _read(place, name)
    categories = _categories(name, ids, classes) | {int(ids.max(initial=0)) + 1: BACKGROUND}
    found = derive_image(_with_background(ids, classes)).segments  # void is the last one there
    return [segment | {"category_id": categories[segment["id"]]} for segment in found if segment["id"] in categories]


def _read(place: Path, name: str) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Ids of the objects, 0 where there is none or void, and the classes."""
    classes, objects = (
        read_label(place / folder / f"{name}.png") for folder in ("SegmentationClass", "SegmentationObject")
    )
    if classes.shape != objects.shape:
        raise UserError(f"{place}: {name}.png of SegmentationClass and SegmentationObject differ in size")
    return np.where(objects == VOID, 0, objects), classes


def _image(place: Path, name: str) -> tuple[dict[str, Any], Annotations]:
    ids, classes = _read(place, name)
    height, width = classes.shape
    annotations = annotate(ids, _categories(name, ids, classes))
    return {"file_name": f"{name}.jpg", "height": height, "width": width}, annotations


def _categories(name: str, ids: NDArray[np.integer], classes: NDArray[np.integer]) -> dict[int, int]:
    """Object id -> its most frequent class."""
    counts = np.bincount((ids * 256 + classes).ravel(), minlength=256 * (int(ids.max(initial=0)) + 1)).reshape(-1, 256)
    best = counts[:, 1 : len(CLASSES)].argmax(axis=1) + 1
    unclear = [i for i in np.unique(ids).tolist() if i and not counts[i, best[i]]]
    if unclear:
        raise UserError(f"SegmentationObject/{name}.png: object {unclear[0]} lies on no class of SegmentationClass")
    return dict(enumerate(best.tolist()))
