"""Starting processes: one, detectron2's launcher for several GPUs and machines, or under torchrun."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from time import sleep
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from seg_ext.engine.finite import NotFinite
from seg_ext.engine.interrupt import Interrupted
from seg_ext.errors import UserError

_LOST = ("closed by peer", "reset by peer", "Broken pipe")  # gloo
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
    if max(args.num_gpus, 1) * args.num_machines > 1:
        os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")  # for spawned processes
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _pass_on)
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
        code = error.exit_code or 1
        if error.signal_name:  # no process of the run could say so itself
            print(f"seg-ext: error: process {error.error_index} was killed by {error.signal_name}", file=sys.stderr)
        return code if code > 0 else 128 - code
    return 0


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Let the processes of the run stop with a checkpoint; their parent waits for them."""
    for child in multiprocessing.active_children():
        child.terminate()


def _run(main: Main, cfg: CfgNode, args: argparse.Namespace) -> None:
    """``main`` in a process of its own: bad input leaves as one line and exit status 2, as in a single process.

    Anything else leaves as its traceback, at once: the other processes may wait for this one for long.
    """
    try:
        main(cfg, args)
    except UserError as error:
        if comm.get_world_size() == 1 or args.debug:
            raise
        print(f"seg-ext: error: {error.line}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        if comm.get_world_size() == 1:
            raise
        print(f"seg-ext: {error}", file=sys.stderr)
        sys.exit(130)
    except NotFinite as error:
        if comm.get_world_size() == 1:
            raise
        if error.told_here:
            print(f"seg-ext: error: {error.line}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if comm.get_world_size() == 1:
            raise
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    """Say what failed and end this process without waiting for its threads, workers or the other processes.

    One that failed only since another one ended leaves the traceback to that one, and is ended by the parent meanwhile.
    """
    text = f"process {comm.get_rank()} failed:\n{traceback.format_exc()}"
    if any(words in str(error) for words in _LOST):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        sleep(2)
        text = f"process {comm.get_rank()} lost another one: {str(error).splitlines()[0]}"
    print(f"seg-ext: error: {text}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(1)


def _run_under_torchrun(main: Main, cfg: CfgNode, args: argparse.Namespace) -> None:
    on_gpu = cfg.MODEL.DEVICE != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        _run(main, cfg, args)
    finally:
        dist.destroy_process_group()
