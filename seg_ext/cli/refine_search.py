"""``seg-ext refine --search``: rounds of grids of the dense CRF's parameters, scored by mIoU."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seg_ext.errors import UserError

if TYPE_CHECKING:
    from seg_ext.inference.crf_search import Sample


def search(args: argparse.Namespace, name: str, steps: Sequence[Mapping[str, Any]]) -> int:
    """Search in rounds; after each, write ``search.json`` with all points known so far.

    Args:
        args: of ``seg-ext refine``.
        name: data set with ground truth.
        steps: one dense_crf, whose arguments hold where the grid does not say otherwise.
    """
    from seg_ext.evaluation.output_files import replacing
    from seg_ext.inference.crf_search import GRID, grid_points, refine_grid, score_points

    fixed = _fixed(steps)
    grid = read_grid(args.grid) if args.grid else dict(GRID)
    samples, classes, ignore = _samples(args, name)
    target = Path(args.output) / "search.json"
    known: dict[str, dict[str, Any]] = {}
    best: dict[str, Any] = {}
    for number in range(1, args.rounds + 1):
        points = [point for point in grid_points(grid, fixed) if json.dumps(point) not in known]
        if not points:
            break
        title = f"round {number} of {args.rounds}, {len(points)} points"
        scores, plain = score_points(points, samples(title), num_classes=classes, ignore=ignore)
        known |= {json.dumps(p): {**p, "mIoU": round(100 * s, 4)} for p, s in zip(points, scores, strict=True)}
        best = max(known.values(), key=lambda point: point["mIoU"])
        found = {"data_set": name, "unrefined": round(100 * plain, 4), "best": best, "points": list(known.values())}
        with replacing(target) as path:
            path.write_text(json.dumps(found, indent=1))
        print(f"round {number}: mIoU {best['mIoU']:.2f}, best of {len(known)}; {100 * plain:.2f} without the CRF")
        grid = refine_grid(grid, best)
    entry = {"NAME": "dense_crf"} | {key: value for key, value in best.items() if key != "mIoU"}
    print(f'{target}\nTEST.REFINE "{[entry]}"')
    return 0


def read_grid(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """``["bi_w=3,5"]`` as ``{"bi_w": (3, 5)}``.

    Raises:
        UserError: an argument that is not searched, or values that are no positive numbers.
    """
    from seg_ext.inference.crf_search import SEARCHED

    grid: dict[str, tuple[float, ...]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        if key not in SEARCHED:
            raise UserError(f"--grid {text}: takes KEY=A,B with KEY of {', '.join(SEARCHED)}")
        try:
            grid[key] = tuple(int(x) if float(x).is_integer() else float(x) for x in values.split(","))
        except (ValueError, OverflowError) as error:
            raise UserError(f"--grid {text}: takes numbers with commas between them") from error
        if min(grid[key]) <= 0 or (key == "iterations" and not all(isinstance(x, int) for x in grid[key])):
            raise UserError(f"--grid {text}: takes positive {'whole ' if key == 'iterations' else ''}numbers")
    return grid


def _fixed(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of the only step."""
    from seg_ext.inference.refine import split_step

    parsed = [split_step(step) for step in steps]
    if [step for step, _ in parsed] != ["dense_crf"]:
        raise UserError("--search: takes one dense_crf in TEST.REFINE and nothing else")
    return parsed[0][1]


def _samples(args: argparse.Namespace, name: str) -> tuple[Callable[[str], Iterator[Sample]], int, int]:
    """What gives scores, image and ground truth of each image anew; K; and the ignored id."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from tqdm import tqdm

    from seg_ext.cli.refine_inputs import read_pair, records_of
    from seg_ext.data.label_io import read_record_label
    from seg_ext.engine.setup import interactive
    from seg_ext.inference.saved_scores import find_scores, read_scores

    if args.images:
        raise UserError("--search takes the images of the data set; leave --images out")
    DatasetCatalog.get(name)  # derives what your own data lack
    records = [record for record in records_of(args, name) if "sem_seg_file_name" in record]
    if not records:
        raise UserError(f"data set '{name}' has no label maps to search on")
    files = find_scores(args.maps, [record["file_name"] for record in records])
    metadata = MetadataCatalog.get(name)
    classes = len(metadata.get("stuff_classes") or ()) or len(read_scores(files[0], logits=args.logits))
    ignore = metadata.get("ignore_label", 255)

    def samples(title: str) -> Iterator[Sample]:
        pairs = zip(records, files, strict=True)
        for record, file in tqdm(pairs, desc=title, total=len(files), unit="img", disable=not interactive()):
            scores, image = read_pair(args, record, file)
            if len(scores) != classes:
                raise UserError(f"{file}: {len(scores)} classes; data set '{name}' has {classes}")
            target = read_record_label(record, metadata, num_classes=classes, ignore=ignore)
            if target.shape != scores.shape[1:]:
                raise UserError(f"{record['sem_seg_file_name']}: another size than the map {file}; takes equal ones")
            yield scores, image, target

    return samples, classes, ignore
