"""Training steps a second of seg_ext's engine, of detectron2's SimpleTrainer and of a bare loop: same losses first.

python benchmarks/train_step.py [--network smp_unet one_conv demo] [--steps 10] [--rounds 7] [--size 256] [--batch 4]
                                [--profile]

Networks: smp_unet is segmentation_models_pytorch's U-Net on ResNet-18, whose bare loop is that of its users; one_conv
has one 1x1 convolution, so that the difference of two is what a loop costs a step, whatever the network; demo is the
panoptic network of the demo's config (U-Net beside Mask R-CNN, 150 iterations in the README), at 256x256 here, which
detectron2 trains as its own PanopticFPN with its own mask head. All have the same first weights, the same batches in
memory, the same loss and SGD with momentum. The engine's step is timed whole, with all its hooks: timer, schedule,
signals, metrics.json and TensorBoard; detectron2's and the bare loop have none. Ratios above 1 are in seg_ext's favour.
--profile names the operators on which a step spends most.
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import count, cycle
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.data import DatasetCatalog  # noqa: E402
from detectron2.engine import SimpleTrainer  # noqa: E402
from detectron2.modeling import META_ARCH_REGISTRY, build_model  # noqa: E402
from detectron2.structures import BitMasks, Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import seg_ext  # noqa: E402
from seg_ext.engine.trainer import Trainer  # noqa: E402

Batch = list[dict[str, Any]]
CLASSES, BATCHES = 12, 4
LR, MOMENTUM = 0.005, 0.9
NAME = "nothing to read"


@META_ARCH_REGISTRY.register()
class SmpUNet(nn.Module):
    """smp's network as a model of detectron2's kind: inputs in, losses out."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.net = self.network()

    @staticmethod
    def network() -> nn.Module:
        """(N, 3, H, W) -> (N, CLASSES, H, W)."""
        import segmentation_models_pytorch as smp

        unet: nn.Module = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)
        return unet

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of a batch."""
        images = torch.stack([sample["image"] for sample in batch])
        target = torch.stack([sample["sem_seg"] for sample in batch])
        return {"loss": F.cross_entropy(self.net(images), target)}


@META_ARCH_REGISTRY.register()
class OneConv(SmpUNet):
    """Next to nothing: what a step takes is what its loop costs."""

    @staticmethod
    def network() -> nn.Module:
        """A 1x1 convolution."""
        return nn.Conv2d(3, CLASSES, 1)


def noise(number: int, size: int) -> Batch:
    """What U-Net takes."""
    return [
        {"image": torch.randn(3, size, size), "sem_seg": torch.randint(0, CLASSES, (size, size))} for _ in range(number)
    ]


def discs(number: int, size: int) -> Batch:
    """What the demo's network takes: twenty discs on noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    samples = []
    for _ in range(number):
        radius = rng.uniform(size / 25, size / 10, 20)
        centers = rng.uniform(radius[:, None], size - radius[:, None], (20, 2))
        masks = np.stack([np.hypot(rows - y, columns - x) < r for (y, x), r in zip(centers, radius, strict=True)])
        image = rng.normal(100, 20, (3, size, size)) + 60 * masks.any(0)
        found = Instances((size, size))
        corners = np.concatenate([centers - radius[:, None], centers + radius[:, None]], 1)[:, [1, 0, 3, 2]]
        found.gt_boxes, found.gt_masks = Boxes(torch.from_numpy(corners).float()), BitMasks(torch.from_numpy(masks))
        found.gt_classes = torch.zeros(20, dtype=torch.long)
        semantic = torch.from_numpy(masks.any(0).astype(np.int64))
        sample = {"image": torch.from_numpy(image).float(), "sem_seg": semantic, "instances": found}
        samples.append({**sample, "height": size, "width": size})
    return samples


NETWORKS: dict[str, tuple[str, Callable[[int, int], Batch]]] = {
    "smp_unet": ("SmpUNet", noise),
    "one_conv": ("OneConv", noise),
    "demo": ("PanopticSegmentor", discs),
}


def config(architecture: str, folder: str) -> CfgNode:
    """The demo's, for a training without end of whose data nothing is read."""
    solver = ("BASE_LR", LR, "MOMENTUM", MOMENTUM, "WEIGHT_DECAY", 0.0, "WARMUP_ITERS", 0, "MAX_ITER", 10**6)
    constant = ("LR_SCHEDULER_NAME", "WarmupConstantLR", "CHECKPOINT_PERIOD", 10**6, "OPTIMIZER", "SGD")
    keys = (*solver, *constant)
    opts = [str(x) for key, value in zip(keys[::2], keys[1::2], strict=True) for x in (f"SOLVER.{key}", value)]
    opts += ["MODEL.META_ARCHITECTURE", architecture, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", folder, "SEED", "0"]
    sets = ["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "0"]
    cfg = seg_ext.load_config("nuclei/panoptic_unet_R_18_FPN.yaml", [*opts, *sets])
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    return cfg


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """The same for all."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR, momentum=MOMENTUM)


def bare(model: nn.Module, batches: list[Batch]) -> Iterator[float]:
    """The loop that anybody writes; gives the loss of each step."""
    optimizer, storage = optimizer_of(model), EventStorage()
    model.train()
    for batch in cycle(batches):
        optimizer.zero_grad()
        with storage:  # which detectron2's heads write to
            loss = torch.stack(list(model(batch).values())).sum()
        loss.backward()
        optimizer.step()
        yield loss.item()


def bare_smp(model: nn.Module, batches: list[Batch]) -> Iterator[float]:
    """The same on tensors, as a user of smp has them from a DataLoader."""
    net: Any = model.net
    optimizer = optimizer_of(net)
    tensors = [[torch.stack([sample[key] for sample in batch]) for key in ("image", "sem_seg")] for batch in batches]
    net.train()
    for images, target in cycle(tensors):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), target)
        loss.backward()
        optimizer.step()
        yield loss.item()


def detectron2s(model: nn.Module, batches: list[Batch]) -> Iterator[float]:
    """detectron2's step alone, without hooks."""
    trainer = SimpleTrainer(model, cycle(batches), optimizer_of(model))
    storage = EventStorage()
    for trainer.iter in count():
        with storage:
            trainer.run_step()
        yield storage.latest()["total_loss"][0]


def trainer_of(cfg: CfgNode, model: nn.Module, batches: list[Batch]) -> Trainer:
    """seg_ext's trainer with all its hooks, on weights and batches that are given."""
    trainer = Trainer(cfg)
    trainer.checkpointer.model.load_state_dict(model.state_dict())
    trainer._trainer.data_loader = cycle(batches)
    trainer.storage = EventStorage()
    with trainer.storage:
        trainer.before_train()
    return trainer


def engine(trainer: Trainer) -> Iterator[float]:
    """What detectron2's loop does in an iteration."""
    for trainer.iter in count():
        with trainer.storage:
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
        yield trainer.storage.latest()["total_loss"][0]


def theirs(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The same network and weights in detectron2's architecture."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_MASK_HEAD.NAME = "PanopticFPN", "MaskRCNNConvUpsampleHead"
    own = build_model(cfg)
    own.load_state_dict(model.state_dict())
    return own


def contestants(network: str, batch: int, size: int, folder: str) -> dict[str, Iterator[float]]:
    """Endless steps by name, each with its own copy of the model."""
    architecture, samples = NETWORKS[network]
    cfg = config(architecture, folder)
    torch.manual_seed(0)
    model, inputs = build_model(cfg), samples(batch * BATCHES, size)
    batches = [inputs[i : i + batch] for i in range(0, len(inputs), batch)]
    loop = bare if network == "demo" else bare_smp
    return {
        "bare": loop(copy.deepcopy(model), batches),
        "detectron2": detectron2s(theirs(cfg, model) if network == "demo" else copy.deepcopy(model), batches),
        "seg_ext": engine(trainer_of(cfg, model, batches)),
    }


def check(steps: dict[str, Iterator[float]], number: int) -> None:
    """Stop unless the losses of the first steps are the same; random numbers begin alike."""
    losses = {}
    for name, step in steps.items():
        torch.manual_seed(1)
        losses[name] = [next(step) for _ in range(number)]
    reference = losses["bare"]
    for name, found in losses.items():
        if not np.allclose(found, reference, rtol=1e-3):
            raise SystemExit(f"the losses differ: {name} {found}, bare {reference}")
    print(f"  same losses in {number} steps: {', '.join(f'{loss:.5f}' for loss in reference)}")


def measure(steps: dict[str, Iterator[float]], number: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each round, in turns; the order is turned too."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            torch.manual_seed(turn)
            start = time.perf_counter()
            for _ in range(number):
                next(steps[name])
            seconds[name].append((time.perf_counter() - start) / number)
    return seconds


def show_profile(step: Iterator[float], number: int) -> None:
    """The largest costs by operator, as shares of the CPU time of some steps."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(number):
            next(step)
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    convolved = [row for row in rows if "conv" in row.key]
    others = [row for row in rows if "conv" not in row.key]
    shares = [f"convolutions {sum(row.self_cpu_time_total for row in convolved) / whole:.1%}"]
    shares += [f"{row.key.split('::')[-1]} {row.self_cpu_time_total / whole:.1%}" for row in others[:8]]
    print(f"  costs of seg_ext's step: {', '.join(shares)}")


def spread(values: list[float], digits: int = 3) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=10, help="of each in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="name the largest costs of seg_ext's step")
    args = parser.parse_args()
    seg_ext.register()
    record = {"file_name": "a.png", "height": 1, "width": 1, "sem_seg_file_name": "b.png", "annotations": []}
    DatasetCatalog.register(NAME, lambda: [record])
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        for network in args.network:
            print(f"{network}: batch {args.batch}, {args.size}x{args.size}, {args.threads} threads")
            steps = contestants(network, args.batch, args.size, folder)
            check(steps, 3)
            seconds = measure(steps, args.steps, args.rounds)
            for name, values in seconds.items():
                ratios = [a / b for a, b in zip(values, seconds["seg_ext"], strict=True)]
                print(f"  {name:10} {spread(values, 4)} s a step; {spread(ratios)} times seg_ext's", flush=True)
            if args.profile:
                show_profile(steps["seg_ext"], 2)


if __name__ == "__main__":
    main()
