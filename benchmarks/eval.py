"""seg_ext's evaluators beside those of others on the same predictions: same numbers first, then the clock.

python benchmarks/eval.py [ROW ...] [--images 500] [--rounds 5]

The two run in turns, a round each; ratios are those of the rounds, as median and range. One thread, one process.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning)

import cv2  # noqa: E402
import eval_objects  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator  # noqa: E402
from PIL import Image  # noqa: E402

from seg_ext.evaluation import SemanticEvaluator  # noqa: E402
from seg_ext.evaluation.semantic import METRICS  # noqa: E402

CLASSES, SIZE, MAPS = 19, (512, 1024), 10  # of Cityscapes at half size; different maps, which are repeated
Inputs = list[tuple[dict[str, Any], dict[str, Any]]]


class Detectron2(SemSegEvaluator):
    """detectron2's own, with a reader that NumPy 2 allows; the rest of it is untouched."""

    def __init__(self, name: str) -> None:
        def read(path: str, dtype: Any) -> np.ndarray:
            return np.asarray(Image.open(path), dtype=dtype).copy()

        super().__init__(name, distributed=False, sem_seg_loading_fn=read)


def smooth(seed: int) -> np.ndarray:
    """(K, H, W) float32 scores whose argmax has regions of some dozen pixels."""
    coarse = np.random.default_rng(seed).normal(size=(CLASSES, 8, 16)).astype(np.float32)
    return np.stack([cv2.resize(layer, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for layer in coarse])


def semantic_inputs(folder: Path) -> Inputs:
    """Label maps with 5 % of the pixels ignored, and scores that are right on two in three of the others."""
    inputs: Inputs = []
    for i in range(MAPS):
        truth = smooth(i)
        labels = truth.argmax(0).astype(np.uint8)
        labels[: SIZE[0] // 20] = 255
        Image.fromarray(labels).save(folder / f"{i}.png")
        record = {"file_name": f"{i}.jpg", "sem_seg_file_name": str(folder / f"{i}.png")}
        inputs.append((record, {"sem_seg": torch.from_numpy(truth + 0.4 * smooth(MAPS + i))}))
    return inputs


def seconds(evaluator: DatasetEvaluator, inputs: Inputs, images: int) -> float:
    """To score so many images."""
    evaluator.reset()
    start = time.perf_counter()
    for i in range(images):
        record, output = inputs[i % len(inputs)]
        evaluator.process([record], [output])
    evaluator.evaluate()
    return time.perf_counter() - start


def scored(evaluator: DatasetEvaluator, inputs: Inputs) -> dict[str, dict[str, float]]:
    """The results on each input once."""
    evaluator.reset()
    for record, output in inputs:
        evaluator.process([record], [output])
    return evaluator.evaluate()


def compare(
    ours: Callable[[int], float], theirs: Callable[[int], float], args: argparse.Namespace
) -> list[list[float]]:
    """Seconds an image of both, in turns, for the rounds of the arguments."""
    images = -(-args.images // args.rounds)
    return [[ours(images) / images, theirs(images) / images] for _ in range(args.rounds)]


def report(row: str, peer: str, times: Sequence[Sequence[float]]) -> None:
    """Print a row: milliseconds an image of both, and the ratio, each as median and range."""
    mine, other = zip(*times, strict=True)
    ratio = spread([b / a for a, b in times])
    ms = [spread([1000 * t for t in values]) for values in (mine, other)]
    print(f"{row:42} seg_ext {ms[0]}  {peer} {ms[1]} ms/image  {peer} / seg_ext {ratio}", flush=True)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def semantic(args: argparse.Namespace, metrics: Sequence[str] = ("boundary",)) -> None:
    """mIoU and what comes with it against detectron2's SemSegEvaluator, which has no metric but the default ones."""
    with tempfile.TemporaryDirectory() as name:
        inputs = semantic_inputs(Path(name))
        DatasetCatalog.register(name, lambda: [record for record, _ in inputs])
        MetadataCatalog.get(name).set(stuff_classes=[f"class {i}" for i in range(CLASSES)], ignore_label=255)
        theirs, ours = Detectron2(name), SemanticEvaluator(name, distributed=False, metrics=metrics)
        expected, found = (scored(evaluator, inputs)["sem_seg"] for evaluator in (theirs, ours))
        for key, value in expected.items():
            if not key.startswith(("BoundaryIoU", "min(")) and not abs(found[key] - value) <= 1e-9:
                raise SystemExit(f"{key} is {found[key]}, detectron2 has {value}")
        times = compare(lambda n: seconds(ours, inputs, n), lambda n: seconds(theirs, inputs, n), args)
        report(f"semantic, {' '.join(metrics)}", "detectron2", times)


def masks(args: argparse.Namespace) -> None:
    """Mask AP against pycocotools and detectron2, of 35 objects an image."""
    with tempfile.TemporaryDirectory() as name:
        eval_objects.mask_ap(Path(name), args.images, 35, args.rounds)


def panoptic(args: argparse.Namespace) -> None:
    """Panoptic quality against panopticapi's loop, of 20 objects an image, on 60 images at most."""
    with tempfile.TemporaryDirectory() as name:
        eval_objects.panoptic(Path(name), min(args.images, 60), 20, args.rounds)


ROWS: dict[str, Callable[[argparse.Namespace], None]] = {
    "semantic": semantic,
    "semantic_all": partial(semantic, metrics=METRICS),
    "masks": masks,
    "panoptic": panoptic,
}


def main() -> None:
    """Run the rows that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all without")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    unknown = [row for row in args.rows if row not in ROWS]
    if unknown or args.rounds < 1 or args.images < args.rounds:
        parser.error(
            f"{unknown[0] if unknown else 'rounds'}: takes rows of {', '.join(ROWS)}, an image a round at least"
        )
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for row in args.rows or ROWS:
        ROWS[row](args)


if __name__ == "__main__":
    main()
