"""What ``seg-ext serve`` adds to the time of a prediction: the endpoint's answer against the predictor's output.

python benchmarks/serve.py [--config camvid/unet_R_18_cpu.yaml] [--size 360 480] [--rounds 7] [--threads 1]

The image comes as the bytes of a PNG on the one side and as a file on the other; the request stays in the process. The
answer is the semantic label map with its areas. Weights are random; the two take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from detectron2.modeling import build_model
from starlette.testclient import TestClient

import seg_ext
from seg_ext.cli.serve import build_service
from seg_ext.serve.app import build_app
from seg_ext.serve.service import Limits


def main() -> None:
    """Print both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="camvid/unet_R_18_cpu.yaml")
    parser.add_argument("--size", nargs=2, type=int, default=[360, 480], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as folder:
        weights, image = Path(folder) / "model.pth", Path(folder) / "image.png"
        cfg = seg_ext.load_config(args.config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(weights)])
        torch.save({"model": build_model(cfg).state_dict()}, weights)
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(image), cv2.resize(pixels, args.size[::-1]))
        predictor = seg_ext.Predictor(cfg)
        client = TestClient(build_app(build_service(cfg, Limits())), base_url="http://127.0.0.1")
        times: dict[str, list[float]] = {"predict": [], "serve": []}
        for _ in range(args.rounds + 1):
            start = time.perf_counter()
            predictor(image)["sem_seg"].argmax(0)
            between = time.perf_counter()
            answer = client.post("/predict?task=semantic", content=image.read_bytes())
            times["predict"].append(1e3 * (between - start))
            times["serve"].append(1e3 * (time.perf_counter() - between))
            answer.raise_for_status()
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values[1:], n=4)
        print(f"{name:8} {middle:8.1f} ms ({low:.1f}..{high:.1f})")
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"serve / predict: {medians['serve'] / medians['predict']:.3f}")


if __name__ == "__main__":
    main()
