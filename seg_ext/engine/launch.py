"""Starting processes: one, detectron2's launcher for several GPUs and machines, or under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from seg_ext.data.datasets.folder import register_from_config_list
from seg_ext.errors import UserError

Main = Callable[[CfgNode, argparse.Namespace], None]


def launch(main: Main, cfg: CfgNode, args: argparse.Namespace) -> int:
    """Run ``main(cfg, args)`` in every process that the arguments or torchrun's environment ask for.

    Returns:
        The exit status: 0, or that of the process that failed.

    Raises:
        UserError: more GPUs asked for than there are.
    """
    if "LOCAL_RANK" in os.environ:
        _run_under_torchrun(main, cfg, args)
        return 0
    gpus = torch.cuda.device_count()
    if args.num_gpus > 1 and cfg.MODEL.DEVICE != "cpu" and args.num_gpus > gpus:
        raise UserError(f"--num-gpus {args.num_gpus}: this machine has {gpus}")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")  # for spawned processes
    try:
        detectron2_launch(
            _run,
            max(args.num_gpus, 1),
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, cfg, args),
        )
    except ProcessExitedException as error:
        return error.exit_code or 1
    return 0


def _run(main: Main, cfg: CfgNode, args: argparse.Namespace) -> None:
    """``main`` in a process of its own: bad input leaves as one line and exit status 2, as in a single process."""
    register_from_config_list(cfg.DATASETS.FOLDERS)
    try:
        main(cfg, args)
    except UserError as error:
        if comm.get_world_size() == 1 or args.debug:
            raise
        print(f"seg-ext: error: {error.line}", file=sys.stderr)
        sys.exit(2)


def _run_under_torchrun(main: Main, cfg: CfgNode, args: argparse.Namespace) -> None:
    on_gpu = cfg.MODEL.DEVICE != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        main(cfg, args)
    finally:
        dist.destroy_process_group()
