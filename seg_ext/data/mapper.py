"""The one mapper from data set records to model inputs: semantic, instance and panoptic, training and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import Tensor

from seg_ext.config import has_instances, has_semantics
from seg_ext.data.augmentation import ResizeShortestEdge, build_augmentations
from seg_ext.data.instances import MASK_FORMATS, to_instances
from seg_ext.data.label_io import read_image, read_label
from seg_ext.errors import UserError

Record = Mapping[str, Any]

_KEPT = ("file_name", "image_id", "height", "width")
_ANNOTATION_KEYS = {"bbox", "bbox_mode", "category_id"}


class SegMapper:
    """Callable on one record; works in worker processes. Randomness comes from numpy's global generator alone.

    In training it gives "image", and as far as the record and the config have them "sem_seg" and "instances"; at test
    time only "image": the labels are then neither read nor resized. A record's raw ids become train ids through its
    "sem_seg_label_map", which the data sets of seg_ext put there, so that sets with different maps mix.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "BGR",
        num_classes: int | None = None,
        ignore: int = 255,
        masks: str | None = None,
    ) -> None:
        """Set what is read and how it is augmented.

        Args:
            is_train: whether ground truth is wanted.
            augmentations: applied in order.
            image_format: "BGR" or "RGB".
            num_classes: of the semantic labels, 1 for ids {0, 1}; None for no semantic labels.
            ignore: train id that does not count.
            masks: of the instances: "bitmask", "polygon" or "none" for boxes alone; None for no instances.
        """
        if masks not in (None, *MASK_FORMATS):
            raise UserError(f"INPUT.MASK_FORMAT is {masks!r}; it must be bitmask or polygon")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = None if num_classes is None else max(2, num_classes)
        self.ignore = ignore
        self.masks = masks

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        """Arguments of the constructor; a head without a NAME, or unused by the architecture, wants no ground truth."""
        model, inputs = cfg.MODEL, cfg.INPUT
        ignore = model.SEM_SEG_HEAD.IGNORE_VALUE
        if is_train and inputs.CROP.ENABLED:
            raise UserError("INPUT.CROP.ENABLED is not used; list RandomScaleCrop in INPUT.AUGMENTATIONS instead")
        if not is_train:
            augmentations = [ResizeShortestEdge([inputs.MIN_SIZE_TEST], inputs.MAX_SIZE_TEST)]
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
            "num_classes": model.SEM_SEG_HEAD.NUM_CLASSES if has_semantics(cfg) else None,
            "ignore": ignore,
            "masks": (inputs.MASK_FORMAT if model.MASK_ON else "none") if has_instances(cfg) else None,
        }

    def __call__(self, record: Record) -> dict[str, Any]:
        """Read and augment one record.

        Returns:
            "image": (3, h, w) uint8; "height", "width": of the image as stored; the record's "file_name" and
            "image_id"; in training also "sem_seg": (h, w) int64 and "instances".

        Raises:
            UserError: an unreadable file, ids out of range, or sizes that differ.
        """
        image = read_image(record["file_name"], self.image_format)
        label = self._read_label(record) if self.is_train else None
        source = image.shape[0], image.shape[1]
        _check_sizes(record, source, None if label is None else label.shape)
        data = T.AugInput(image, sem_seg=label)
        transforms = self.augmentations(data)
        mapped = {key: record[key] for key in _KEPT if key in record} | _image(data.image, source)
        if label is not None:
            mapped["sem_seg"] = torch.from_numpy(data.sem_seg.astype(np.int64))
        if self.is_train and self.masks is not None and "annotations" in record:
            mapped["instances"] = self._instances(record, transforms, source, data.image.shape[:2])
        return mapped

    def map_image(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """What a model takes for an image that is in memory.

        Args:
            image: (H, W, 3) in the order of the mapper's image format.
        """
        data = T.AugInput(image)
        self.augmentations(data)
        return _image(data.image, (image.shape[0], image.shape[1]))

    def _read_label(self, record: Record) -> NDArray[np.int32] | None:
        if self.num_classes is None or "sem_seg_file_name" not in record:
            return None
        return read_label(
            record["sem_seg_file_name"],
            label_map=record.get("sem_seg_label_map"),
            num_classes=self.num_classes,
            ignore=self.ignore,
        )

    def _instances(
        self, record: Record, transforms: T.TransformList, source: tuple[int, int], size: tuple[int, int]
    ) -> Instances:
        wanted = _ANNOTATION_KEYS if self.masks == "none" else _ANNOTATION_KEYS | {"segmentation"}
        for annotation in record["annotations"]:
            if not wanted <= annotation.keys():
                lacking = ", ".join(sorted(wanted - annotation.keys()))
                raise UserError(f"{record['file_name']}: an annotation lacks {lacking}")
        try:
            return to_instances(record["annotations"], transforms, source=source, size=size, masks=self.masks or "none")
        except ValueError as error:
            raise UserError(f"{record['file_name']}: {error}") from error


def _image(image: NDArray[np.uint8], stored: tuple[int, int]) -> dict[str, Tensor | int]:
    chw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return {"image": chw, "height": stored[0], "width": stored[1]}


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


def _default_augmentations(lengths: Sequence[int], max_size: int, style: str, flip: str) -> list[T.Augmentation]:
    if flip not in ("horizontal", "vertical", "none"):
        raise UserError(f"INPUT.RANDOM_FLIP is {flip!r}; it must be horizontal, vertical or none")
    try:
        resize = ResizeShortestEdge(lengths, max_size, style)
    except ValueError as error:
        raise UserError(f"INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TRAIN_SAMPLING: {error}") from error
    flips = [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]
    return [resize, *flips]
