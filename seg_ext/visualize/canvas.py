"""A picture in the making: regions tinted and bordered, texts where there is room for them, a legend below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from seg_ext.errors import UserError
from seg_ext.visualize.scene import Array

_FONT = cv2.FONT_HERSHEY_DUPLEX
_LIGHT, _DARK = (255, 255, 255), (24, 27, 32)  # RGB: text, and its outline and the legend's ground
_SHORT, _LONG = 320, 1600  # pixels: pictures are enlarged until a side reaches its number


def _edges(ids: Array) -> Array:
    """(H, W) bool: pixels of a region that touch another id."""
    edges = np.zeros(ids.shape, bool)
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differ = ids[one] != ids[other]
        edges[one] |= differ
        edges[other] |= differ
    return edges & (ids > 0)


class Canvas:
    """A picture in the making: an image (H, W, 3), enlarged when small, to which boxes and texts are added.

    Its regions, ids (H, W) in 0..n, are tinted with (n + 1, 3) colors at opacity alpha, fully on borders, and 0 not.
    """

    def __init__(self, image: Array, ids: Array, colors: Array, alpha: float) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(f"image is {image.dtype} {image.shape}; a picture needs uint8 (H, W, 3)")
        if ids.shape != image.shape[:2]:
            raise UserError(f"an image of {image.shape[:2]} pixels and a map of {ids.shape} do not belong together")
        height, width = ids.shape
        self.factor = max(1, min(math.ceil(_SHORT / min(height, width)), _LONG // max(height, width)))
        reach = self.factor * math.sqrt(height * width)
        self.text_height = max(10, round(reach / 56))  # of a capital letter, pixels
        self.line = max(1, round(reach / 500))
        self.taken = np.zeros((0, 4))  # xyxy of the texts
        self.ids = ids.repeat(self.factor, 0).repeat(self.factor, 1)
        picture = cv2.resize(image, self.ids.shape[::-1], interpolation=cv2.INTER_CUBIC)
        full = colors.astype(np.uint8).take(self.ids, 0)
        tinted = cv2.addWeighted(picture, 1 - alpha, full, alpha, 0)
        edges = cv2.dilate(_edges(self.ids).view(np.uint8), np.ones((self.line, self.line), np.uint8)) > 0
        tinted[edges] = full[edges]
        self.picture = np.where((self.ids > 0)[..., None], tinted, picture)

    def outline(self, boxes: Array, colors: Array) -> None:
        """Draw those xyxy boxes that are large against the text."""
        boxes = np.rint(boxes * self.factor).astype(int)
        roomy = (boxes[:, 2:] - boxes[:, :2] >= 7 * self.text_height).all(1)
        for (x0, y0, x1, y1), color in zip(boxes[roomy].tolist(), colors[roomy].tolist(), strict=True):
            cv2.rectangle(self.picture, (x0, y0), (x1 - 1, y1 - 1), color, self.line)

    def write(self, texts: Mapping[int, str]) -> set[int]:
        """Print each region's text inside it, larger regions first, where it fits; returns the ids printed."""
        printed: set[int] = set()
        if not any(texts.values()):
            return printed
        step = math.ceil(max(self.ids.shape) / 480)
        ids, area, depth, points = _interiors(self.ids[::step, ::step], self.text_height / step / 2)
        for index in np.argsort(-area, kind="stable").tolist():
            region, room = int(ids[index]), 2 * step * depth[index]
            if not texts.get(region):
                continue
            width, height, base = _extent(texts[region], self.text_height)
            corner = points[index] * step - np.array([width, height]) // 2
            x, y = np.maximum(np.minimum(corner, np.array(self.ids.shape[::-1]) - (width + 2, height + 2)), 2).tolist()
            box = np.array([x - 4, y - 4, x + width + 4, y + height + base + 2])
            free = not ((self.taken[:, :2] < box[2:]) & (self.taken[:, 2:] > box[:2])).all(1).any()
            if free and width <= 2.2 * room and width * height <= 0.6 * area[index] * step**2:
                _print(self.picture, texts[region], (x, y), self.text_height)
                self.taken = np.vstack([self.taken, box])
                printed.add(region)
        return printed

    def legend(self, entries: Sequence[tuple[str, Sequence[int]]]) -> None:
        """Add a strip below the picture, a swatch and a name for each (name, colour)."""
        if not entries:
            return
        em = self.text_height
        cell = max(_extent(name, em)[0] for name, _ in entries) + 3 * em
        width = max(self.picture.shape[1], cell + em)
        columns = (width - em) // cell
        strip = np.full((em + 2 * em * math.ceil(len(entries) / columns), width, 3), _DARK, np.uint8)
        for index, (name, color) in enumerate(entries):
            row, column = divmod(index, columns)
            x, y = em + column * cell, em + 2 * em * row
            cv2.rectangle(strip, (x, y), (x + em - 1, y + em - 1), color, cv2.FILLED)
            _print(strip, name, (x + em + em // 2, y), em)
        margin = ((0, 0), (0, width - self.picture.shape[1]), (0, 0))
        self.picture = np.vstack([np.pad(self.picture, margin), strip])


def _interiors(ids: Array, least: float) -> tuple[Array, Array, Array, Array]:
    """Ids of the regions of (H, W) with room for a disc of radius ``least``, their areas, and the largest disc in each.

    The disc is given as its radius and its centre (x, y).
    """
    inside = (~_edges(ids) & (ids > 0)).astype(np.uint8)
    depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.nonzero(depth >= max(least, 1))
    region, depth = ids[y, x], depth[y, x]
    count = np.maximum(np.bincount(region), 1)
    off_centre = np.hypot(*(v - (np.bincount(region, v) / count)[region] for v in (x, y)))
    order = np.lexsort((depth - 0.1 * off_centre, region))  # of like discs, the one near the middle comes last
    found = np.flatnonzero(np.bincount(region))
    last = order[np.searchsorted(region[order], found, side="right") - 1]
    return found, np.bincount(ids.ravel())[found], depth[last], np.stack([x[last], y[last]], 1)


def _extent(text: str, height: int) -> tuple[int, int, int]:
    """Width, height and depth below the base line of a text, pixels."""
    (width, above), base = cv2.getTextSize(text, _FONT, cv2.getFontScaleFromHeight(_FONT, height, 1), 1)
    return width, above, base


def _print(picture: Array, text: str, corner: tuple[int, int], height: int) -> None:
    """Print a text, light with a dark outline, its top left corner at (x, y); what leaves the picture is cut."""
    width, ascent, base = _extent(text, height)
    pad = max(2, height // 5)
    ink = np.zeros((ascent + base + 2 * pad, width + 2 * pad), np.uint8)
    scale = cv2.getFontScaleFromHeight(_FONT, height, 1)
    cv2.putText(ink, text, (pad, pad + ascent), _FONT, scale, 255, 1, cv2.LINE_AA)
    outline = cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pad - 1,) * 2))
    left, top = corner[0] - pad, corner[1] - pad
    area = picture[max(0, top) : max(0, top + len(ink)), max(0, left) : max(0, left + ink.shape[1])]
    for layer, color in ((outline, _DARK), (ink, _LIGHT)):
        opacity = layer[max(0, -top) :, max(0, -left) :][: area.shape[0], : area.shape[1], None] / np.float32(255)
        area[:] = np.rint(area * (1 - opacity) + np.array(color, np.float32) * opacity)
