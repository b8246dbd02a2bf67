"""How well predicted membranes part the cells: the foreground-restricted Rand score (Arganda-Carreras et al., 2015)."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from seg_ext.data.label_io import read_label

CELL = 0


def rand_score(pred: np.ndarray, target: np.ndarray) -> float:
    """Score in [0, 1] of cells, the 4-connected regions of the id 0, over the pixels of the ground truth's cells.

    Args:
        pred: (H, W) predicted ids.
        target: (H, W) ground truth.
    """
    found, wanted = (ndimage.label(labels == CELL)[0] for labels in (pred, target))
    inside = wanted > 0
    joint = np.zeros((found.max() + 1, wanted.max() + 1))
    np.add.at(joint, (found[inside], wanted[inside]), 1)
    joint[0] = 0  # cell pixels given to a membrane are in no region ...
    alone = np.count_nonzero(found[inside] == 0)  # ... and each of them is one of its own
    squares = (joint**2).sum() + alone
    return float(2 * squares / ((joint.sum(axis=1) ** 2).sum() + alone + (np.bincount(wanted[inside]) ** 2.0).sum()))


def main() -> None:
    """Print the mean over two folders of label maps with the same names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("labels", type=Path)
    args = parser.parse_args()
    files = sorted(args.predictions.glob("*.png"))
    scores = [rand_score(read_label(file), read_label(args.labels / file.name)) for file in files]
    print(f"{100 * np.mean(scores):.1f} over {len(files)} images")


if __name__ == "__main__":
    main()
