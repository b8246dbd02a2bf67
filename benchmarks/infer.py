"""Inference on the CPU by seg_ext's backends and by the peers' networks in eager PyTorch: equal outputs first.

python benchmarks/infer.py [--network deeplabv3plus pspnet unet fcn] [--backend auto] [--rounds 7] [--size 512]
                           [--folder 100]

Networks on ResNet-50: DeepLabV3+, PSPNet and U-Net of segmentation_models_pytorch, FCN of torchvision, with the same
random weights, imported by seg_ext's own importers. The peer gets a normalised tensor; seg_ext's predictor gets the
uint8 image and normalises it too. Both run in turns, an image at a time; ratios are taken within a round, so that what
else the machine does falls on both. Above 1 is in seg_ext's favour. The backends' building is not timed.

--folder N then times what `seg-ext predict` does on N JPEG images, label maps being written, against the same predictor
on an image in memory (the first network): the share of the model's own speed that is left.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import seg_ext  # noqa: E402

seg_ext.register()

from seg_ext import Predictor  # noqa: E402
from seg_ext.checkpoint.sources import SOURCES, Hints  # noqa: E402
from seg_ext.config import parse_config  # noqa: E402
from seg_ext.engine.predict import predict_sources  # noqa: E402
from seg_ext.inference.backends import BACKENDS  # noqa: E402
from seg_ext.inference.sources import find_sources  # noqa: E402

CLASSES = 21
GOOD = 2e-4  # of two networks' scores, as a share of the greatest
SMP = {"deeplabv3plus": "DeepLabV3Plus", "pspnet": "PSPNet", "unet": "Unet"}
NETWORKS = (*SMP, "fcn")


def peer_network(name: str) -> tuple[str, nn.Module]:
    """The library and its network, its norms with statistics as after a training."""
    torch.manual_seed(0)
    if name == "fcn":
        from torchvision.models.segmentation import fcn_resnet50

        library, network = "torchvision", fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    else:
        import segmentation_models_pytorch as smp

        library, network = "smp", getattr(smp, SMP[name])("resnet50", encoder_weights=None, classes=CLASSES)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 128, 128))
    return library, network.eval()


def predictor_of(library: str, network: nn.Module, folder: Path, backend: str, expected: int) -> Predictor:
    """The same network as one of seg_ext's."""
    imported = SOURCES[library](network.state_dict(), Hints())
    file = folder / "weights.pth"
    torch.save({"model": dict(imported.weights)}, file)
    config = yaml.safe_dump({"VERSION": 2, **imported.config})
    cfg = parse_config(config, "the imported config", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(file)])
    cfg.INPUT.MIN_SIZE_TEST = 0
    return Predictor(cfg, backend=backend, expected=expected)


def contestants(
    network: nn.Module, predictors: dict[str, Predictor], image: np.ndarray
) -> dict[str, Callable[[], Tensor]]:
    """Functions that give scores (K, H, W), the peer's first."""
    some = next(iter(predictors.values()))
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (some.config.MODEL.PIXEL_MEAN, some.config.MODEL.PIXEL_STD))
    tensor = (torch.from_numpy(image).permute(2, 0, 1)[None] - mean) / std

    def peer() -> Tensor:
        scores: Any = network(tensor)
        return (scores["out"] if isinstance(scores, dict) else scores)[0]

    def ours(predictor: Predictor) -> Callable[[], Tensor]:
        inputs = predictor.mapper.map_image(image)
        return lambda: predictor.predict([inputs])[0]["sem_seg"]

    return {"eager peer": peer} | {name: ours(predictor) for name, predictor in predictors.items()}


def check(runs: dict[str, Callable[[], Tensor]]) -> None:
    """Stop unless the scores are the same."""
    reference = runs["eager peer"]()
    for name, run in runs.items():
        difference = ((run() - reference).abs().max() / reference.abs().max()).item()
        if not difference <= GOOD:
            raise SystemExit(f"the scores differ: {name} by {difference:.1e}")
        print(f"  {name:14} same scores ({difference:.0e})")


def measure(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds an image in each round, in turns; the order turns too."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def folder_speed(predictor: Predictor, size: int, count: int, folder: Path) -> None:
    """Images a second from files to files, and from memory, in turns."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        image = cv2.resize(rng.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8), (size, size))
        cv2.imwrite(str(folder / "images" / f"{index:05d}.jpg"), image)
    sources = find_sources([str(folder / "images")])
    inputs = predictor.mapper.map_image(predictor.read(sources[0].key))
    shares = []
    for part in range(4):
        some = sources[part::4]
        start = time.perf_counter()
        for _ in some:
            predictor.predict([inputs])
        own = time.perf_counter() - start
        start = time.perf_counter()
        outcome = predict_sources(predictor, some, folder / f"out{part}", save=["labels", "json"])
        whole = time.perf_counter() - start
        assert outcome.images == len(some)
        shares.append(own / whole)
        print(f"  {len(some) / whole:.2f} images/s from files to files, {len(some) / own:.2f} the model alone")
    print(f"  share of the model's own speed: {spread(shares)}")


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=["auto"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=512, help="pixels, a multiple of 32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--expected", type=int, default=500, help="images that auto chooses for")
    parser.add_argument("--folder", type=int, default=0, metavar="N", help="images to predict from files to files")
    args = parser.parse_args()
    logging.getLogger("seg_ext.inference.backends").addHandler(_printing())
    logging.getLogger("seg_ext.inference.backends").setLevel(logging.INFO)
    torch.set_num_threads(args.threads)
    image = np.random.default_rng(0).integers(0, 255, (args.size, args.size, 3), dtype=np.uint8)
    gains: dict[str, list[float]] = {name: [] for name in args.backend}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for number, name in enumerate(args.network):
            print(f"{name}: ResNet-50, {args.size}x{args.size}, {args.threads} threads")
            library, network = peer_network(name)
            predictors = {x: predictor_of(library, network, Path(folder), x, args.expected) for x in args.backend}
            runs = contestants(network, predictors, image)
            check(runs)
            seconds = measure(runs, args.rounds)
            print(f"  {'eager peer':14} {spread(seconds['eager peer'])} s an image ({library})")
            for backend in args.backend:
                ratios = [a / b for a, b in zip(seconds["eager peer"], seconds[backend], strict=True)]
                gains[backend].append(statistics.median(ratios))
                print(f"  {backend:14} {spread(seconds[backend])} s an image; {spread(ratios)} times the peer's speed")
            if args.folder and number == 0:
                folder_speed(predictors[args.backend[0]], args.size, args.folder, Path(folder))
    for backend, values in gains.items():
        mean = statistics.geometric_mean(values)
        print(f"{backend}: geometric mean of {len(values)}: {mean:.3f} times the peers' speed")


def _printing() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("  %(message)s"))
    return handler


if __name__ == "__main__":
    main()
