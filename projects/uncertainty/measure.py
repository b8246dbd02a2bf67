"""Weight averaging against Monte Carlo dropout on a test set, and how uncertain class borders and the rest are."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tqdm import tqdm

import seg_ext
from seg_ext.checkpoint import Checkpointer
from seg_ext.config import load_config
from seg_ext.data.image_io import read_picture
from seg_ext.data.label_io import read_record_label
from seg_ext.engine.checks import complete_config
from seg_ext.engine.loaders import build_test_loader
from seg_ext.evaluation import SemanticEvaluator
from seg_ext.evaluation.ground_truth import RecordLookup
from seg_ext.evaluation.output_files import write_picture
from seg_ext.inference.mc_dropout import MAPS, McDropout
from seg_ext.visualize import stuff_colors

BORDER = 3  # pixels on either side of a change of class
METRICS = ("calibration", "uncertainty")
SHOWN = ("mIoU", "pACC", "mACC", "ECE", "KeptACC@90", "AURC")


def near_borders(labels: np.ndarray, ignore: int) -> np.ndarray:
    """(H, W) bool: within BORDER pixels of where two classes meet; borders of the ignored area do not count."""
    change = np.zeros(labels.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        meet = (labels[a] != labels[b]) & (labels[a] != ignore) & (labels[b] != ignore)
        change[a] |= meet
        change[b] |= meet
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BORDER + 1,) * 2)
    return cv2.dilate(change.view(np.uint8), disc) > 0


def picture(record: Mapping[str, Any], truth: np.ndarray, output: Mapping[str, Any], colors: np.ndarray) -> np.ndarray:
    """(H, 4 W, 3) RGB: image, ground truth, prediction, variance (bright is uncertain)."""
    variance = output["uncertainty"]["variance"].numpy()
    scaled = (255 * variance / max(np.quantile(variance, 0.995), 1e-9)).clip(0, 255).astype(np.uint8)
    bright = cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO)[..., ::-1]
    painted = np.vstack([colors, np.zeros((256 - len(colors), 3), colors.dtype)])
    found = output["sem_seg"].argmax(0).numpy()
    return np.hstack([read_picture(record["file_name"]), painted[truth], painted[found], bright]).astype(np.uint8)


class Borders:
    """Means of the maps of uncertainty near borders and elsewhere."""

    def __init__(self) -> None:
        self._sums = np.zeros((len(MAPS), 2))
        self._pixels = np.zeros(2)

    def add(self, truth: np.ndarray, maps: Mapping[str, torch.Tensor], ignore: int) -> None:
        """Count an image."""
        border, known = near_borders(truth, ignore), truth != ignore
        for column, place in enumerate((border & known, ~border & known)):
            self._pixels[column] += place.sum()
            self._sums[:, column] += [maps[name].numpy()[place].sum() for name in MAPS]

    def lines(self) -> list[str]:
        """Rows of a table."""
        means = self._sums / self._pixels
        rows = zip(MAPS, *means.T, strict=True)
        return [f"| {name} | {near:.4f} | {far:.4f} | {near / far:.2f} |" for name, near, far in rows]


def main() -> None:
    """Predict every image in each way, score, print two tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the training, with config.yaml and model_final.pth")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 6, 20])
    parser.add_argument("--limit", type=int, help="only the first N images")
    parser.add_argument("--pictures", type=int, nargs="*", default=[20, 100, 180], help="numbers of the images to draw")
    parser.add_argument("--output", type=Path, default=Path("output/uncertainty"))
    args = parser.parse_args()
    seg_ext.register()
    cfg = load_config(args.run / "config.yaml")
    complete_config(cfg)
    model: Any = build_model(cfg).eval()
    Checkpointer(model).load(str(args.run / "model_final.pth"))
    (name,) = cfg.DATASETS.TEST
    metadata, records = MetadataCatalog.get(name), RecordLookup(name)
    options = {"batch": cfg.TEST.MC_DROPOUT.BATCH, "seed": cfg.TEST.MC_DROPOUT.SEED}
    ways = {"weight averaging": model} | {f"{n} samples": McDropout(model, n, **options) for n in args.samples}
    evaluators = {way: SemanticEvaluator(name, metrics=METRICS, distributed=False) for way in ways}
    colors, ignore = stuff_colors(metadata, len(metadata.stuff_classes)), metadata.get("ignore_label", 255)
    seconds, borders, rows = dict.fromkeys(ways, 0.0), Borders(), []
    loader = build_test_loader(cfg, name)
    for i, inputs in enumerate(tqdm(islice(loader, args.limit), total=args.limit or len(loader))):
        for way, predict in ways.items():
            start = time.perf_counter()
            with torch.no_grad():
                outputs = predict(inputs)
            seconds[way] += time.perf_counter() - start
            evaluators[way].process(inputs, outputs)
        record = records.holding(inputs[0], "sem_seg_file_name")
        truth = read_record_label(record, metadata, num_classes=len(colors), ignore=ignore)
        borders.add(truth, outputs[0]["uncertainty"], ignore)
        if i in args.pictures:
            rows.append(picture(record, truth, outputs[0], colors))
    print(f"| way | {' | '.join(SHOWN)} | s an image |\n|---|{'---|' * (len(SHOWN) + 1)}")
    for way, evaluator in evaluators.items():
        scores = evaluator.evaluate()["sem_seg"]
        print(f"| {way} | {' | '.join(f'{scores[key]:.2f}' for key in SHOWN)} | {seconds[way] / (i + 1):.3f} |")
    print(f"\n| mean of {args.samples[-1]} samples | within {BORDER} px of a border | elsewhere | ratio |")
    print("|---|---|---|---|")
    print("\n".join(borders.lines()))
    if rows:
        write_picture(args.output / "pictures.png", np.vstack(rows))


if __name__ == "__main__":
    main()
