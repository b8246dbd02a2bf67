"""The one mapper from data set records to model inputs: semantic, instance and panoptic, training and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import Tensor

from seg_ext.config import has_instances, has_semantics
from seg_ext.data.augmentation import ResizeShortestEdge, build_augmentations
from seg_ext.data.copy_paste import CopyPaste, Sample
from seg_ext.data.image_io import CHANNELS, check_bands, check_format, read_image
from seg_ext.data.instances import MASK_FORMATS, to_instances
from seg_ext.data.keypoints import mirrored_keypoints
from seg_ext.data.label_io import read_record_label
from seg_ext.data.targets import Target, build_targets
from seg_ext.errors import UserError

Record = Mapping[str, Any]

_KEPT = ("file_name", "image_id", "height", "width")
_ANNOTATION_KEYS = {"bbox", "bbox_mode", "category_id"}


class SegMapper:
    """Callable on one record; works in worker processes. Randomness comes from numpy's global generator alone, unless
    an augmentation from outside draws from Python's or torch's.

    In training it gives "image", and as far as the record and the config have them "sem_seg" and "instances"; at test
    time only "image": the labels are then neither read nor resized. A record's raw ids and colours become train ids
    through its "sem_seg_label_map" and "sem_seg_label_colors", which the data sets of seg_ext put there, so that sets
    with different ones mix.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "BGR",
        bands: int | None = None,
        num_classes: int | None = None,
        ignore: int = 255,
        masks: str | None = None,
        mirrored: Sequence[int] | None = None,
        targets: Sequence[Target] = (),
        copy_paste: CopyPaste | None = None,
    ) -> None:
        """Set what is read and how it is augmented.

        Args:
            is_train: whether ground truth is wanted.
            augmentations: applied in order.
            image_format: "BGR", "RGB", "L" or "BANDS", see :func:`seg_ext.data.image_io.read_image`.
            bands: channels that the model takes; None for those of the format, or any with "BANDS".
            num_classes: of the semantic labels, 1 for ids {0, 1}; None for no semantic labels.
            ignore: train id that does not count.
            masks: of the instances: "bitmask", "polygon" or "none" for boxes alone; None for no instances.
            mirrored: see :func:`seg_ext.data.keypoints.mirrored_keypoints`; None for no keypoints.
            targets: made of the stored label map, and moved with it; in training.
            copy_paste: objects of other records; in training, with masks that are "bitmask".
        """
        if masks not in (None, *MASK_FORMATS):
            raise UserError(f"INPUT.MASK_FORMAT is {masks!r}; it must be bitmask or polygon")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        check_format(image_format)
        self.image_format = image_format
        self.bands = CHANNELS[image_format] if bands is None else bands
        self.num_classes = None if num_classes is None else max(2, num_classes)
        self.ignore = ignore
        self.masks = masks
        self.mirrored = mirrored
        self.targets = tuple(targets)
        if copy_paste is not None and masks != "bitmask":
            raise UserError("INPUT.COPY_PASTE needs instances with MODEL.MASK_ON and INPUT.MASK_FORMAT bitmask")
        if copy_paste is not None and mirrored is not None:
            raise UserError("INPUT.COPY_PASTE moves no keypoints; set MODEL.KEYPOINT_ON False or its PROBABILITY 0")
        self.copy_paste = copy_paste

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        """Arguments of the constructor; a head without a NAME, or unused by the architecture, wants no ground truth."""
        model, inputs = cfg.MODEL, cfg.INPUT
        ignore = model.SEM_SEG_HEAD.IGNORE_VALUE
        _check_channels(inputs.FORMAT, model.PIXEL_MEAN, model.PIXEL_STD)
        if is_train and inputs.CROP.ENABLED:
            raise UserError("INPUT.CROP.ENABLED is not used; list RandomScaleCrop in INPUT.AUGMENTATIONS instead")
        if not is_train:
            augmentations = _test_augmentations(inputs)
        elif inputs.AUGMENTATIONS:
            augmentations = build_augmentations(inputs.AUGMENTATIONS, ignore=ignore, pad_value=model.PIXEL_MEAN)
        else:
            augmentations = _default_augmentations(
                inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TRAIN_SAMPLING, inputs.RANDOM_FLIP
            )
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": inputs.FORMAT,
            "bands": len(model.PIXEL_MEAN),
            "num_classes": model.SEM_SEG_HEAD.NUM_CLASSES if has_semantics(cfg) else None,
            "ignore": ignore,
            "masks": (inputs.MASK_FORMAT if model.MASK_ON else "none") if has_instances(cfg) else None,
            "mirrored": _mirrored(cfg.DATASETS.TRAIN, model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS)
            if is_train and has_instances(cfg) and model.KEYPOINT_ON
            else None,
            "targets": build_targets(inputs.TARGETS, ignore=ignore) if is_train else (),
            "copy_paste": _copy_paste(inputs.COPY_PASTE, ignore) if is_train else None,
        }

    def __call__(self, record: Record, pool: Sequence[Record] | None = None) -> dict[str, Any]:
        """Read and augment one record.

        Args:
            record: what is mapped.
            pool: the records that copy-paste draws from.

        Returns:
            "image": (C, h, w) uint8 or float32; "height", "width": of the image as stored; the record's "file_name" and
            "image_id"; in training also "sem_seg": (h, w) int64, "instances", and every target under its key: (h, w)
            float32.

        Raises:
            UserError: an unreadable file, ids or bands out of range, sizes that differ, or copy-paste without a pool.
        """
        sample, source = self._augmented(record)
        if self.copy_paste is not None:
            if not pool:
                raise UserError("INPUT.COPY_PASTE draws from the data set: hand its records to the mapper as pool")
            sample = self.copy_paste(sample, lambda: self._augmented(pool[np.random.randint(len(pool))])[0])
        mapped = {key: record[key] for key in _KEPT if key in record} | _image(sample.image, source)
        if sample.label is not None:
            mapped["sem_seg"] = torch.from_numpy(sample.label.astype(np.int64))
        mapped |= {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in sample.targets.items()}
        if sample.instances is not None:
            mapped["instances"] = sample.instances
        return mapped

    def _augmented(self, record: Record) -> tuple[Sample, tuple[int, int]]:
        """The record after its augmentations, and the height and width of its image as stored."""
        image = self.read(record["file_name"])
        label = self._read_label(record) if self.is_train else None
        source = image.shape[0], image.shape[1]
        _check_sizes(record, source, None if label is None else label.shape)
        data = T.AugInput(image, sem_seg=None if label is None else _in_bytes(label, self.ignore))
        transforms = self.augmentations(data)
        instances, targets = None, {}
        if label is not None:
            targets = {target.key: transforms.apply_segmentation(target(record, label)) for target in self.targets}
        if self.is_train and self.masks is not None and "annotations" in record:
            instances = self._instances(record, transforms, source, data.image.shape[:2])
        return Sample(data.image, data.sem_seg, instances, targets), source

    def read(self, path: str | Path) -> NDArray[Any]:
        """(H, W, C) uint8 or float32: the image of a file in the mapper's image format."""
        return read_image(path, self.image_format, bands=self.bands)

    def map_image(self, image: NDArray[Any]) -> dict[str, Any]:
        """What a model takes for an image that is in memory.

        Args:
            image: (H, W, C) uint8 or float32 in the mapper's image format.

        Raises:
            UserError: another shape or type.
        """
        if image.ndim != 3 or image.dtype not in (np.uint8, np.float32):
            raise UserError(f"an image of {image.dtype} and shape {image.shape}; takes (H, W, C) uint8 or float32")
        check_bands("image", image, self.bands)
        data = T.AugInput(image)
        self.augmentations(data)
        return _image(data.image, (image.shape[0], image.shape[1]))

    def _read_label(self, record: Record) -> NDArray[np.int32] | None:
        if self.num_classes is None or "sem_seg_file_name" not in record:
            return None
        return read_record_label(record, num_classes=self.num_classes, ignore=self.ignore)

    def _instances(
        self, record: Record, transforms: T.TransformList, source: tuple[int, int], size: tuple[int, int]
    ) -> Instances:
        wanted = _ANNOTATION_KEYS if self.masks == "none" else _ANNOTATION_KEYS | {"segmentation"}
        wanted = wanted if self.mirrored is None else wanted | {"keypoints"}
        for annotation in record["annotations"]:
            if not wanted <= annotation.keys():
                lacking = ", ".join(sorted(wanted - annotation.keys()))
                raise UserError(f"{record['file_name']}: an annotation lacks {lacking}")
        try:
            return to_instances(
                record["annotations"],
                transforms,
                source=source,
                size=size,
                masks=self.masks or "none",
                mirrored=self.mirrored,
            )
        except ValueError as error:
            raise UserError(f"{record['file_name']}: {error}") from error


def _image(image: NDArray[Any], stored: tuple[int, int]) -> dict[str, Tensor | int]:
    return {"image": torch.from_numpy(_planes(image)), "height": stored[0], "width": stored[1]}


def _planes(image: NDArray[Any]) -> NDArray[Any]:
    """(H, W, C) -> (C, H, W), contiguous."""
    if not image.flags.c_contiguous or image.shape[2] not in (3, 4):
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    planes = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    cv2.split(image, list(planes))  # four times as fast
    return planes


def _in_bytes(label: NDArray[np.int32], ignore: int) -> NDArray[Any]:
    """The ids in 8 bits where they fit, which are moved in a fraction of the time and memory."""
    return label.astype(np.uint8) if 0 <= ignore and max(label.max(), ignore) < 256 else label


def _check_channels(format: str, mean: Sequence[float], std: Sequence[float]) -> None:
    check_format(format)
    given = CHANNELS[format] or len(mean)
    for key, values in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        if len(values) != given:
            raise UserError(f"MODEL.{key} has {len(values)} values for {given} channels of INPUT.FORMAT {format}")


def _check_sizes(record: Record, image: tuple[int, ...], label: tuple[int, ...] | None) -> None:
    if label is not None and label != image:
        raise UserError(
            f"{record['sem_seg_file_name']} is {label[1]}x{label[0]}, but its image {record['file_name']} is"
            f" {image[1]}x{image[0]}; they must be equal"
        )
    stated = record.get("height", image[0]), record.get("width", image[1])
    if stated != image:
        raise UserError(
            f"{record['file_name']} is {image[1]}x{image[0]}, but its annotations say {stated[1]}x{stated[0]}"
        )


def _test_augmentations(inputs: Any) -> list[T.Augmentation]:
    random = [e for e in inputs.AUGMENTATIONS_TEST if e.get("NAME") not in ("Resize", "ResizeShortestEdge")]
    random += [e for e in inputs.AUGMENTATIONS_TEST if "PROBABILITY" in e]
    if random:
        raise UserError(
            f"INPUT.AUGMENTATIONS_TEST: {random[0].get('NAME')}; takes Resize and ResizeShortestEdge alone, without"
            " PROBABILITY"
        )
    default = [ResizeShortestEdge([inputs.MIN_SIZE_TEST], inputs.MAX_SIZE_TEST)]
    return build_augmentations(inputs.AUGMENTATIONS_TEST, key="INPUT.AUGMENTATIONS_TEST", ignore=0) or default


def _default_augmentations(lengths: Sequence[int], max_size: int, style: str, flip: str) -> list[T.Augmentation]:
    if flip not in ("horizontal", "vertical", "none"):
        raise UserError(f"INPUT.RANDOM_FLIP is {flip!r}; it must be horizontal, vertical or none")
    try:
        resize = ResizeShortestEdge(lengths, max_size, style)
    except ValueError as error:
        raise UserError(f"INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TRAIN_SAMPLING: {error}") from error
    flips = [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]
    return [resize, *flips]


def _mirrored(datasets: Sequence[str], wanted: int) -> tuple[int, ...]:
    found = mirrored_keypoints(datasets)
    if len(found) != wanted:
        raise UserError(
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {wanted}; DATASETS.TRAIN {', '.join(datasets)} has {len(found)}"
        )
    return found


def _copy_paste(node: Mapping[str, Any], ignore: int) -> CopyPaste | None:
    known = ("PROBABILITY", "MAX_OBJECTS", "MIN_VISIBLE")
    try:
        wanted = CopyPaste(**{key.lower(): node[key] for key in known}, ignore=ignore)
    except (TypeError, ValueError) as error:
        raise UserError(f"INPUT.COPY_PASTE: {error}") from error
    return wanted if wanted.probability else None
