"""Counts of a data set, added up image by image: classes, objects, sizes, channels, contents seen before."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_ext.data.check.faults import Finding
from seg_ext.data.check.scan import Kind, Rules, Scan
from seg_ext.data.check.source import Record
from seg_ext.losses.class_weights import median_frequency

Array = NDArray[Any]

OBJECT_SIDES = (32, 96)  # of COCO's small and medium objects, pixels
UNEQUAL = 64  # ratio of the areas of the largest and the smallest image
KEPT = 16  # records remembered of each class
_BOUNDS = tuple(side**2 for side in OBJECT_SIDES)


class Tally:
    """The counts of one data set: numbers, and the names of files that may turn out to be at fault."""

    def __init__(self, name: str, rules: Rules) -> None:
        self.name, self.rules = name, rules
        self.images = 0
        count, things = len(rules.classes), len(rules.things)
        self.labelled = self.annotated = 0  # records
        self.pixels = np.zeros(count, np.int64)
        self.containing = np.zeros(count, np.int64)  # images
        self.image_pixels = np.zeros(count, np.int64)  # of the images that contain the class
        self.ignored = 0
        self.objects = np.zeros((things, 3), np.int64)  # by size
        self.object_images = np.zeros(things, np.int64)
        self.most_objects = self.covered = self.again = 0
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.moments: dict[Kind, tuple[int, Array, Array]] = {}  # pixels, sums and sums of squares by channel
        self.kinds: dict[Kind, list[str]] = {}
        self.masked: list[str] = []  # label maps of 0 and 255
        self.narrow: Counter[bool] = Counter()
        self.both = self.plain = False  # label maps with 255 beside foreground; with foreground and without 255
        # By class, then by thing: the records whose content hashes are the least, which is any of them
        self.examples: list[list[tuple[bytes, int]]] = [[] for _ in range(count + things)]

    def add(self, index: int, record: Record, scan: Scan) -> None:
        """Add the record of this index."""
        self.images += 1
        if scan.size is not None and scan.kind is not None and scan.mean is not None and scan.std is not None:
            self.sizes[scan.size] += 1
            self.kinds.setdefault(scan.kind, []).append(record["file_name"])
            area = scan.size[0] * scan.size[1]
            sums = area, area * scan.mean, area * (scan.std**2 + scan.mean**2)
            before = self.moments.get(scan.kind, (0, 0, 0))
            self.moments[scan.kind] = (before[0] + sums[0], before[1] + sums[1], before[2] + sums[2])
        present: list[int] = []
        if scan.pixels is not None:
            present += self._add_label(record, scan, scan.pixels)
        if scan.objects is not None:
            self.annotated += 1
            self.covered += scan.objects.covered
            self.again += scan.objects.again
            self.most_objects = max(self.most_objects, len(scan.objects.classes))
            known = (scan.objects.classes >= 0) & (scan.objects.classes < len(self.rules.things))
            classes, bins = scan.objects.classes[known], np.digitize(scan.objects.areas[known], _BOUNDS)
            np.add.at(self.objects, (classes, bins), 1)
            there = np.unique(classes)
            self.object_images[there] += 1
            present += (len(self.rules.classes) + there).tolist()
        if scan.digest is None or not scan.sound:
            return
        for place in present:
            insort(self.examples[place], (scan.digest, index))
            del self.examples[place][KEPT:]

    def _add_label(self, record: Record, scan: Scan, pixels: dict[int, int]) -> list[int]:
        self.labelled += 1
        if scan.binary == "masked":
            self.masked.append(record["sem_seg_file_name"])
        self.both |= scan.binary == "both"
        self.plain |= scan.binary is None and bool(pixels.keys() - {0})
        if scan.narrow is not None:
            self.narrow[scan.narrow] += 1
        present = np.array([i for i, n in pixels.items() if 0 <= i < len(self.pixels) and n], np.intp)
        self.pixels[present] += np.array([pixels[i] for i in present], np.int64)
        self.containing[present] += 1
        self.image_pixels[present] += sum(pixels.values())
        self.ignored += pixels.get(self.rules.ignore, 0) if self.rules.ignore not in present else 0
        return present.tolist()

    def findings(self) -> list[Finding]:
        """What only the whole data set shows."""
        found = []
        if self.masked and not self.both and (len(self.pixels) == 2 or not self.plain):
            found += [Finding("binary_255", file) for file in self.masked]
        elif self.rules.ignore != 255 and len(self.pixels) <= 255:
            found += [Finding("ids_out_of_range", file, "id 255") for file in self.masked]
        if len(self.pixels) > 256 and self.narrow[True] and not self.narrow[False]:
            detail = f"{len(self.pixels)} classes, but every label map has 8 bits"
            found.append(Finding("truncated_ids", self.name, detail))
        usual = max(self.kinds, key=lambda kind: len(self.kinds[kind]), default=None)
        for kind, files in self.kinds.items():
            if kind != usual and usual is not None:
                text = f"{kind.channels} channels ({kind.format}), most have {usual.channels} ({usual.format})"
                found += [Finding("unequal_bands", file, text) for file in files]
        areas = {height * width: f"{width}x{height}" for height, width in self.sizes}
        if areas and max(areas) >= UNEQUAL * min(areas):
            found.append(Finding("unequal_sizes", self.name, f"{areas[min(areas)]} to {areas[max(areas)]}"))
        if self.labelled:
            absent = np.flatnonzero(self.pixels == 0).tolist()
            found += [Finding("absent_class", self.name, f"{self.rules.classes[i]}: no pixel") for i in absent]
        if self.annotated:
            absent = [i for i in self.rules.thing_ids if not self.objects[i].any()]
            found += [Finding("absent_class", self.name, f"{self.rules.things[i]}: no object") for i in absent]
        return found

    def rarest(self, count: int) -> list[int]:
        """Indices of sound records to look at: of every class that occurs, rarest first, the next record in turn."""
        numbers = np.concatenate([self.pixels / max(1, self.pixels.sum()), self._object_shares()])
        order = [i for i in np.argsort(numbers, kind="stable") if self.examples[i]]
        turns = [self.examples[i][turn][1] for turn in range(KEPT) for i in order if turn < len(self.examples[i])]
        return list(dict.fromkeys(turns))[:count]

    def statistics(self) -> dict[str, Any]:
        """Plain numbers, as the report shows them and JSON keeps them; what was not counted is left out."""
        found: dict[str, Any] = {"images": self.images}
        if self.sizes:
            found |= {"sizes": self._sizes(), "channels": self._channels()}
        if self.labelled and self.pixels.any():
            found["classes"] = self._classes()
        if self.annotated and self.rules.things:
            found["objects"] = self._objects()
        return found

    def _sizes(self) -> dict[str, Any]:
        found: dict[str, Any] = {"distinct": len(self.sizes)}
        counts = np.array(list(self.sizes.values()))
        for side, values in zip(("height", "width"), np.array(list(self.sizes)).T, strict=True):
            order = values.argsort()
            middle = np.searchsorted(counts[order].cumsum(), (counts.sum() + 1) // 2)
            found[side] = {key: int(values[order][i]) for key, i in (("min", 0), ("median", middle), ("max", -1))}
        return found

    def _channels(self) -> dict[str, Any]:
        kind = max(self.kinds, key=lambda kind: len(self.kinds[kind]))
        pixels, sums, squares = self.moments[kind]
        mean = sums / pixels
        std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
        return {"format": kind.format, "pixel_mean": mean.tolist(), "pixel_std": std.tolist()}

    def _classes(self) -> dict[str, Any]:
        weights = median_frequency(self.pixels, self.image_pixels).tolist()
        total = int(self.pixels.sum())
        rows = zip(self.rules.classes, self.pixels.tolist(), self.containing.tolist(), weights, strict=True)
        return {
            "labelled_images": self.labelled,
            "pixels": total,
            "ignored_pixels": self.ignored,
            "rows": [{"name": c, "pixels": n, "images": k, "share": n / total, "weight": w} for c, n, k, w in rows],
        }

    def _objects(self) -> dict[str, Any]:
        names = ("small", "medium", "large")
        rows = [
            {"name": self.rules.things[i], "count": sum(n), "images": k, **dict(zip(names, n, strict=True))}
            for i in self.rules.thing_ids
            for n, k in [(self.objects[i].tolist(), int(self.object_images[i]))]
        ]
        return {
            "annotated_images": self.annotated,
            "count": int(self.objects.sum()),
            "most_in_an_image": self.most_objects,
            "sizes": dict(zip(names, self.objects.sum(0).tolist(), strict=True)),
            "covered_pixels": self.covered,
            "covered_again": self.again,
            "rows": rows,
        }

    def _object_shares(self) -> Array:
        counts = self.objects.sum(1)
        return counts / max(1, counts.sum())
