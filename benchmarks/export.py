"""An exported model in ONNX Runtime against eager and compiled PyTorch on the CPU: equal scores first, then the clock.

python benchmarks/export.py [--config camvid/unet_R_18_cpu.yaml] [--size 256 256] [--rounds 7] [--threads 1]

Weights are random: the time does not depend on them. Candidates take turns; the median and quartiles of the rounds.
--no-compile leaves torch.compile out, which takes a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detectron2.modeling import build_model
from torch import Tensor

import seg_ext
from seg_ext.export import EXPORTERS, SemanticGraph, verify
from seg_ext.export.formats import load_onnx

Run = Callable[[Tensor], object]


def graph_of(config: str) -> SemanticGraph:
    """The semantic half of a config's model, on the CPU."""
    return SemanticGraph(build_model(seg_ext.load_config(config, ["MODEL.DEVICE", "cpu"])).eval())


def measured(runs: dict[str, Run], image: Tensor, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round, after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(image)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: values[1:] for name, values in times.items()}


@torch.no_grad()
def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="camvid/unet_R_18_cpu.yaml")
    parser.add_argument("--size", nargs=2, type=int, default=[256, 256], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes a minute")
    args = parser.parse_args()
    seg_ext.register()
    torch.set_num_threads(args.threads)
    graph = graph_of(args.config)
    image = graph.example(1, *args.size)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        EXPORTERS["onnx"].write(graph, file, "{}")
        runs: dict[str, Run] = {"eager": graph, "onnxruntime": load_onnx(file, threads=args.threads)}
        worst = max(check.difference or 0.0 for check in verify(graph, load_onnx(file, threads=args.threads)))
    if not args.no_compile:
        runs["compiled"] = torch.compile(graph)
    times = measured(runs, image, args.rounds)
    eager = statistics.median(times["eager"])
    print(f"{args.config}, 1 x {args.size[0]} x {args.size[1]}, {args.threads} thread(s); scores differ by {worst:.0e}")
    print(f"{'':12} {'ms':>8} {'quartiles':>15} {'of eager':>9}")
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:12} {middle:8.1f} {f'{low:.1f}..{high:.1f}':>15} {middle / eager:9.2f}")


if __name__ == "__main__":
    main()
