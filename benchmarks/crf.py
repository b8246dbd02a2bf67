"""The dense CRF: wall time beside pydensecrf2's where it is installed, labels that agree, memory, and how cost grows.

python benchmarks/crf.py [--images DIR] [--rounds 3] [--threads 2]

Both run DeepLab v2's parameters, 10 iterations, on 500 x 375 pixels and 21 classes, taking turns. Photographs are those
of VOC below DETECTRON2_DATASETS, of --images, or else generated regions with noise of 4 grey levels. Where VOC has a
label map the scores are made of it as a network of stride 8 would give them: averaged, noisy, enlarged; elsewhere they
are generated, smooth and unrelated to the image, so that most pixels hang in the balance. pydensecrf2 takes one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seg_ext.data.image_io import read_picture
from seg_ext.data.label_io import read_label
from seg_ext.inference.refine import build_dense_crf

SIZE, CLASSES, ITERATIONS = (375, 500), 21, 10


def scores(size: Sequence[int], classes: int) -> Tensor:
    """(1, K, H, W), smooth."""
    draw = torch.Generator().manual_seed(0)
    coarse = 3 * torch.randn(1, classes, 12, 16, generator=draw)
    return F.interpolate(coarse, tuple(size), mode="bilinear", align_corners=False)


def network_scores(file: Path, size: Sequence[int]) -> Tensor:
    """(1, K, H, W) of VOC's label map for a photograph, or others where there is none."""
    labels = file.parents[1] / "SegmentationClass" / f"{file.stem}.png"
    if not labels.is_file():
        return scores(size, CLASSES)
    ids = torch.from_numpy(read_label(labels)).long()
    planes = F.one_hot(torch.where(ids < CLASSES, ids, 0), CLASSES).permute(2, 0, 1)[None].float()
    coarse = F.interpolate(planes, (size[0] // 8, size[1] // 8), mode="area")
    noise = torch.randn(coarse.shape, generator=torch.Generator().manual_seed(0))
    found = (0.9 * coarse + 0.1 / CLASSES).log() + 0.7 * noise
    return F.interpolate(found, tuple(size), mode="bilinear", align_corners=False)


def scenes(folder: Path | None, size: Sequence[int], limit: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Scores (1, K, H, W) and image (1, 3, H, W), of whole values up to 255."""
    files = sorted(folder.rglob("*.jpg"))[:limit] if folder else []
    if files:
        found = [torch.from_numpy(read_picture(file).copy()).permute(2, 0, 1)[None].float() for file in files]
        resized = [F.interpolate(x, tuple(size), mode="bilinear", antialias=True) for x in found]
    else:
        draw = torch.Generator().manual_seed(1)
        regions = scores(size, 6).argmax(1)[0]
        flat = (255 * torch.rand(6, 3, generator=draw))[regions].permute(2, 0, 1)[None]
        resized = [flat + 4 * torch.randn(1, 3, *size, generator=draw)]
    given = [network_scores(file, size) for file in files] or [scores(size, CLASSES)]
    return [(a, b.round().clamp(0, 255)) for a, b in zip(given, resized, strict=True)]


def ours(given: Tensor, image: Tensor) -> Tensor:
    """(H, W) labels of seg_ext's."""
    with torch.no_grad():
        return build_dense_crf(given.shape[1], iterations=ITERATIONS)(given, image)[0].argmax(0)


def theirs(given: Tensor, image: Tensor) -> Tensor:
    """(H, W) labels of pydensecrf2's."""
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_softmax

    classes, height, width = given.shape[1:]
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(unary_from_softmax(given[0].softmax(0).numpy()))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    pixels = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy().astype(np.uint8))
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=pixels, compat=4)
    return torch.from_numpy(np.array(crf.inference(ITERATIONS)).argmax(0).reshape(height, width))


def seconds(given: Tensor, image: Tensor, rounds: int) -> float:
    """The fastest of ours."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        ours(given, image)
        found.append(time.perf_counter() - start)
    return min(found)


def compare(pairs: Sequence[tuple[Tensor, Tensor]], rounds: int) -> None:
    """Print time and agreement of both, an image a line."""
    if importlib.util.find_spec("pydensecrf") is None:
        print("pydensecrf2 is not installed (pip install pydensecrf2; it needs a C++ compiler): seg_ext alone")
        for i, (given, image) in enumerate(pairs):
            print(f"image {i}: seg_ext {seconds(given, image, rounds):.2f} s")
        return
    for i, (given, image) in enumerate(pairs):
        times: list[tuple[float, float]] = []
        for _ in range(rounds):
            start = time.perf_counter()
            mine = ours(given, image)
            middle = time.perf_counter()
            other = theirs(given, image)
            times.append((middle - start, time.perf_counter() - middle))
        ratios = sorted(a / b for a, b in times)
        a, b = (min(x) for x in zip(*times, strict=True))
        print(
            f"image {i}: seg_ext {a:.2f} s  pydensecrf2 {b:.2f} s  ratio {ratios[len(ratios) // 2]:.2f}"
            f" ({ratios[0]:.2f} to {ratios[-1]:.2f})  labels equal {100 * float((mine == other).float().mean()):.2f} %"
        )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main() -> None:
    """Compare, grow, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    voc = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "VOC2012"
    folder = args.images or (voc if voc.is_dir() else None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given, image = scenes(folder, SIZE, 1)[0]
    seconds(given, image, 1)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{SIZE[1]}x{SIZE[0]}, {CLASSES} classes: {peak:.0f} MiB above the idle process")
    compare(scenes(folder, SIZE), args.rounds)
    sizes = [(180, 240), (270, 360), (375, 500), (540, 720)]
    taken = [seconds(scores(x, CLASSES), scenes(folder, x, 1)[0][1], args.rounds) for x in sizes]
    pixels = [height * width for height, width in sizes]
    print(f"pixels {pixels}: {[round(x, 2) for x in taken]} s, slope {slope(pixels, taken):.2f}")
    counts = [2, 5, 21, 60, 150]
    taken = [seconds(scores(SIZE, x), image, args.rounds) for x in counts]
    print(f"classes {counts}: {[round(x, 2) for x in taken]} s, slope {slope(counts, taken):.2f}")


if __name__ == "__main__":
    main()
