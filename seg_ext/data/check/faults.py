"""What can be wrong with a data set: the table of codes, each with its severity and its remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Kind(NamedTuple):
    """A row of :data:`FAULTS`: "error" or "warning", what it means, what to do."""

    severity: str
    title: str
    fix: str


FAULTS: dict[str, Kind] = {
    "not_loaded": Kind(
        "error",
        "the data set cannot be loaded",
        "put in place or repair what the line names, then check again",
    ),
    "bad_json": Kind(
        "error",
        "an annotation file that is missing, or not in its format",
        "put it in place, or write it again: COCO's is an object with the lists images, annotations and categories",
    ),
    "missing_image": Kind("error", "no image file", "add the image, or take its entry out of the annotations"),
    "missing_label": Kind("error", "no label map for an image", "add a label map of the same name, or move the image"),
    "unreadable_image": Kind(
        "error", "images that cannot be read", "copy the file again from its source, or remove it"
    ),
    "unreadable_label": Kind("error", "label maps that cannot be read", "write the label map again as PNG or TIFF"),
    "nan_pixels": Kind(
        "error", "images with NaN or infinite pixels", "replace them, for example by numpy.nan_to_num, and save again"
    ),
    "unequal_bands": Kind(
        "error",
        "images with another number of bands than most",
        "save all images with the same bands, or register them as two data sets",
    ),
    "size_mismatch": Kind(
        "error",
        "image and annotation of different sizes",
        "resize the label map to the image with nearest neighbour, or pair the right files (an EXIF turn counts)",
    ),
    "recorded_size": Kind(
        "error",
        "recorded height and width that are not the file's",
        "write the file's own height and width, upright by EXIF, into the annotations",
    ),
    "label_is_rgb": Kind(
        "error",
        "label maps in colour where ids are expected",
        "set label_colors (LABEL_COLORS in a yaml) to each class's colour, or store ids in one channel",
    ),
    "label_is_luma": Kind(
        "error",
        "label maps that hold the brightness of the palette's colours in place of ids",
        'save the palette index itself: numpy.asarray(image) of a mode P file, never image.convert("L")',
    ),
    "label_is_lossy": Kind(
        "error", "label maps in a lossy format", "export them again from the source as PNG; ids cannot be won back"
    ),
    "unknown_color": Kind("error", "colours that are not in label_colors", "add the colours, or repaint these pixels"),
    "ids_out_of_range": Kind(
        "error",
        "label ids that are no class",
        "map them with label_map (LABEL_MAP in a yaml), to a class or to the ignored id, or add classes",
    ),
    "binary_255": Kind(
        "error",
        "masks of 0 and 255, where 255 is ignored, so that the foreground is never learnt",
        "map the foreground: label_map {255: 1} (LABEL_MAP in a yaml)",
    ),
    "truncated_ids": Kind("error", "ids cut off at 8 bits", "write the label maps again from the source with 16 bits"),
    "ignore_is_class": Kind(
        "error",
        "the ignored id is also a class",
        "choose an ignore_label that is no class, such as 65535, and map it where labels use the old one",
    ),
    "category_gap": Kind(
        "error",
        "category ids that do not map to 0, 1, ... without gaps",
        "make *_dataset_id_to_contiguous_id give every class of *_classes its index, once",
    ),
    "unknown_category": Kind(
        "error",
        "annotations of categories that the data set does not have",
        "add the category to categories and to *_dataset_id_to_contiguous_id, or remove these annotations",
    ),
    "duplicate_image_id": Kind("error", "image ids used twice", "number the images 1, 2, ... without repetition"),
    "duplicate_annotation_id": Kind(
        "error", "annotation ids used twice", "number the annotations 1, 2, ... over the whole file"
    ),
    "duplicate_segment_id": Kind(
        "error", "segment ids used twice in an image", "give each segment of an image an id of its own"
    ),
    "duplicate_category_id": Kind("error", "category ids used twice", "list each category once"),
    "orphan_annotation": Kind(
        "error", "annotations of images that are not listed", "add the images, or remove these annotations"
    ),
    "bad_annotation": Kind(
        "error", "annotations that lack a key or hold what cannot be read", "write bbox, category_id and segmentation"
    ),
    "crowd_without_rle": Kind(
        "error",
        "crowds (iscrowd 1) that are not an RLE",
        "store crowds as RLE (pycocotools.mask.encode), or set iscrowd 0 if they are single objects",
    ),
    "degenerate_polygon": Kind(
        "error",
        "polygons of fewer than 3 points or without area, which the loader drops",
        "draw them again, or remove the annotation",
    ),
    "empty_mask": Kind("error", "masks without a pixel", "draw them again, or remove the annotation"),
    "empty_box": Kind("error", "boxes without width or height", "recompute bbox from the mask (pycocotools toBbox)"),
    "box_outside": Kind(
        "error",
        "boxes that leave the image",
        "store bbox as x, y, width, height in pixels of the image as it is; two corners would look like this",
    ),
    "loose_box": Kind(
        "warning", "boxes that are not tight around their mask", "recompute bbox from the mask (pycocotools toBbox)"
    ),
    "wrong_area": Kind(
        "error",
        "area in the JSON is not that of the mask (PQ above 100, wrong AP by size)",
        "recompute area from the mask (pycocotools area), or by counting pixels of the PNG",
    ),
    "segment_not_in_png": Kind(
        "error", "segments in the JSON without a pixel in the PNG", "remove the segment from the JSON"
    ),
    "segment_not_in_json": Kind(
        "error", "ids in the PNG without a segment in the JSON", "add the segment to the JSON, or set its pixels to 0"
    ),
    "leaked_image": Kind(
        "error", "images that are in training and in test data", "remove them from one of the two, then train again"
    ),
    "duplicate_image": Kind("warning", "images with the same content as another", "remove all but one"),
    "unused_image": Kind("warning", "images without a label map, which are left out", "add the label map, or ignore"),
    "unused_label": Kind("warning", "label maps without an image", "add the image, or remove the label map"),
    "blank_image": Kind("warning", "images of one value", "look at them; remove what shows nothing"),
    "all_ignored": Kind("warning", "label maps that are ignored everywhere", "label some pixels, or remove the pair"),
    "absent_class": Kind(
        "warning",
        "classes without a pixel or object",
        "add examples, or remove the class; its score is nan here and it is never learnt from here",
    ),
    "unequal_sizes": Kind(
        "warning",
        "sizes that differ extremely",
        "cut large images into tiles, or train on crops (RandomScaleCrop in INPUT.AUGMENTATIONS)",
    ),
    "overlapping_masks": Kind(
        "warning", "instances that cover each other by more than half", "remove the object that is drawn twice"
    ),
}


class Finding(NamedTuple):
    """One fault in one file; detail says what is the matter, "" where the code says all."""

    code: str
    file: str
    detail: str = ""


@dataclass(frozen=True)
class Fault:
    """A fault of a data set with all its findings, in the order of the records."""

    code: str
    findings: list[Finding]

    @property
    def kind(self) -> Kind:
        """Its row of the table."""
        return FAULTS[self.code]


def group(findings: Iterable[Finding]) -> list[Fault]:
    """Faults, errors first, in the order of the table."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.code, []).append(finding)
    order = sorted(FAULTS, key=lambda code: FAULTS[code].severity != "error")
    return [Fault(code, found[code]) for code in order if code in found]
