"""Arguments that several subcommands share: detectron2's flags, without importing it."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable, Sequence

from seg_ext.errors import UserError

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


def data_sets(args: argparse.Namespace, configured: Sequence[str]) -> list[str]:
    """What ``--dataset`` names; else the split of ``--data`` to score on; else the config's. Registers ``--data``."""
    names = list(configured)
    if args.data:
        from seg_ext.data.datasets.own import read_data_file, split_names
        from seg_ext.data.datasets.own_register import register_own

        entry = read_data_file(args.data)
        register_own(entry)
        splits = split_names(entry)
        names = [next(splits[split] for split in ("val", "test", "train") if split in splits)]
    return [args.dataset] if args.dataset else names


def require_known(names: Iterable[str]) -> None:
    """Refuse a data set that is not registered.

    Raises:
        UserError: with the nearest name.
    """
    from detectron2.data import DatasetCatalog

    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`seg-ext list datasets` names all"
            raise UserError(f"unknown data set {name!r}; {hint}")


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """detectron2's flags for GPUs and machines; under torchrun they are not needed."""
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes a machine")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="unique to each machine")
    parser.add_argument("--dist-url", default=f"tcp://127.0.0.1:{_PORT}", metavar="URL", help="where processes meet")
