"""Arguments that several subcommands share: detectron2's flags, without importing it."""

from __future__ import annotations

import argparse
import os

_PORT = 2**15 + 2**14 + (os.getuid() if hasattr(os, "getuid") else 1) % 2**14


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config-file`` and ``KEY VALUE`` overrides."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="yaml of the experiment")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides, given last")


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """``--data``: data of one's own in place of the config's."""
    parser.add_argument(
        "--data", default="", metavar="FILE", help="data.yaml of your own data, instead of the config's"
    )


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """detectron2's flags for GPUs and machines; under torchrun they are not needed."""
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes a machine")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="unique to each machine")
    parser.add_argument("--dist-url", default=f"tcp://127.0.0.1:{_PORT}", metavar="URL", help="where processes meet")
