"""U-Net++ pruned to each of its levels: parameters, and the time of an image beside the whole network's.

python benchmarks/prune.py [--weights CHECKPOINT] [--config dsb2018/unetpp_deepsup.yaml] [--size 256 256] [--rounds 9]
                           [--threads 2]

Every level's scores are first held against those of that classifier in the whole network: they have to be equal to the
bit. The levels take turns; ratios are taken within a round. Without --weights they are random: the time does not depend
on them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from detectron2.modeling import build_model

import seg_ext
from seg_ext.checkpoint import Checkpointer
from seg_ext.checkpoint.sidecar import config_of
from seg_ext.engine.prune import prune


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="of a U-Net++ with deep supervision")
    parser.add_argument("--config", default="dsb2018/unetpp_deepsup.yaml", help="without --weights")
    parser.add_argument("--size", nargs=2, type=int, default=[256, 256], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    seg_ext.register()
    torch.set_num_threads(args.threads)
    device = ["MODEL.DEVICE", "cpu"]
    cfg = config_of(args.weights, device) if args.weights else seg_ext.load_config(args.config, device)
    whole = build_model(cfg).eval()
    if args.weights:
        Checkpointer(whole).load(args.weights)
    levels = [name.replace("x0", "L") for name in whole.sem_seg_head.decoder.heads]
    parts = {level: prune(cfg, whole, level)[1] for level in levels}
    image = {"image": torch.randint(0, 256, (len(cfg.MODEL.PIXEL_MEAN), *args.size)).float()}
    seconds: dict[str, list[float]] = {level: [] for level in levels}
    with torch.no_grad():
        for level, part in parts.items():
            whole.sem_seg_head.decoder.inference = int(level[1:])
            if not torch.equal(part([image])[0]["sem_seg"], whole([image])[0]["sem_seg"]):
                raise SystemExit(f"the scores of {level} differ from its classifier's in the whole network")
        for _ in range(args.rounds):
            for level, part in parts.items():
                start = time.perf_counter()
                part([image])
                seconds[level].append(time.perf_counter() - start)
    print(f"1 x {args.size[0]} x {args.size[1]}, {args.threads} threads; scores equal")
    for level, part in parts.items():
        ratios = np.divide(seconds[level], seconds[levels[-1]])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        number = sum(x.numel() for x in part.parameters())
        milliseconds = 1e3 * float(np.median(seconds[level]))
        print(
            f"{level}  {number:10,} parameters  {milliseconds:7.1f} ms  {middle:.3f} ({low:.3f} to {high:.3f}) of"
            f" {levels[-1]}'s"
        )


if __name__ == "__main__":
    main()
