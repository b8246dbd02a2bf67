"""From command-line arguments to a checked, frozen config with its run folder, logs and seeds."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from seg_ext.checkpoint import write_whole
from seg_ext.checkpoint.locate import check_name
from seg_ext.config import embeds_instances, given_keys, has_instances, has_semantics, load_config
from seg_ext.data.datasets.folder import register_from_config_list
from seg_ext.data.datasets.own import read_data_file, split_names
from seg_ext.data.datasets.own_register import register_own
from seg_ext.engine.checks import complete_config
from seg_ext.engine.run_folder import CONFIG, differences, stored_config, write_environment
from seg_ext.errors import UserError

logger = logging.getLogger(__name__)
_LOGGERS = ("seg_ext", "detectron2", "fvcore")


def read_config(args: argparse.Namespace) -> CfgNode:
    """The checked config of ``--config-file`` and ``KEY VALUE`` overrides.

    Raises:
        UserError: whatever is wrong with it, see :func:`seg_ext.config.load_config` and :mod:`seg_ext.engine.checks`.
    """
    if not args.config_file:
        raise UserError("--config-file is missing: give a yaml file, for example one of configs/")
    cfg = load_config(args.config_file, args.opts)
    if getattr(args, "weights", None):
        cfg.MODEL.WEIGHTS = args.weights
    weights = cfg.MODEL.WEIGHTS
    if weights and not getattr(args, "resume", False):
        check_name(weights)
    given = given_keys(args.config_file, args.opts)
    if getattr(args, "data", None):
        _use_data(cfg, args.data, given)
    register_data(cfg)
    complete_config(cfg, given)
    return cfg


def register_data(cfg: CfgNode) -> None:
    """Register the data sets of DATASETS.FOLDERS and DATASETS.FILES; what the files say takes their paths' place.

    Raises:
        UserError: a file or an entry that does not fit.
    """
    register_from_config_list(cfg.DATASETS.FOLDERS)
    cfg.DATASETS.FILES = [file if isinstance(file, dict) else read_data_file(file) for file in cfg.DATASETS.FILES]
    for entry in cfg.DATASETS.FILES:
        register_own(entry, semantic=has_semantics(cfg), instances=has_instances(cfg) or embeds_instances(cfg))


def prepare_data(cfg: CfgNode) -> None:
    """Register the data in this process, and derive what your own data lack before anything is built.

    Raises:
        UserError: as :func:`register_data`; or images or annotations that do not fit.
    """
    register_data(cfg)
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        if MetadataCatalog.get(name).get("defined_in"):
            DatasetCatalog.get(name)


def _use_data(cfg: CfgNode, file: str, given: Mapping[str, str]) -> None:
    """Train on the train split of a data.yaml and score val, or test without val, unless the command line says else."""
    entry = read_data_file(file)
    names = split_names(entry)
    scored = names.get("val") or names.get("test")
    cfg.DATASETS.FILES = [*cfg.DATASETS.FILES, entry]
    for key, name in (("TRAIN", names.get("train")), ("TEST", scored)):
        if given.get(f"DATASETS.{key}") != "the command line":
            cfg.DATASETS[key] = (name,) if name else ()


def start_run(cfg: CfgNode, *, training: bool = False, resume: bool = False) -> None:
    """Make the run folder with its resolved config and log, seed the generators, freeze the config.

    Args:
        cfg: of the run. A SEED below 0 is drawn, or that which the folder's run has had.
        training: a training, whose config and environment the folder tells; else a config that is there stays.
        resume: it goes on: log with what keys it differs from the stored config.
    """
    folder = Path(cfg.OUTPUT_DIR)
    stored = stored_config(folder) if training and resume else {}
    if cfg.SEED < 0:
        cfg.SEED = stored["SEED"] if stored.get("SEED", -1) >= 0 else comm.shared_random_seed()
    cfg.freeze()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        start_logging(folder / "run.log" if comm.is_main_process() else None)
        if comm.is_main_process() and (training or not (folder / CONFIG).exists()):
            write_whole(folder / CONFIG, lambda stream: stream.write(cfg.dump().encode()))
        if comm.is_main_process() and training:
            write_environment(folder)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {folder}: cannot be written: {error.strerror}") from error
    changed = differences(stored, cfg) if stored else []
    if changed:
        logger.warning("the run goes on with another config than it had: %s", ", ".join(changed))
    seed_all_rng(cfg.SEED + comm.get_rank())


def start_logging(file: Path | None = None) -> None:
    """Log to ``file`` in full, and on stderr what a user wants to see; progress bars stay whole."""
    level = logging.INFO if comm.is_main_process() else logging.ERROR
    console = _ConsoleHandler(level)
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handlers: list[logging.Handler] = [console]
    if file is not None:
        handlers.append(logging.FileHandler(file))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    previous = {handler for name in _LOGGERS for handler in logging.getLogger(name).handlers}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = handlers
        logger.setLevel(logging.INFO)
        logger.propagate = False
    for handler in previous:
        handler.close()


class _ConsoleHandler(logging.Handler):
    """stderr: all of seg_ext's messages and detectron2's training lines; of the others only warnings and worse.

    An exception that is logged on its way up is left to whoever catches it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.startswith(("seg_ext", "detectron2.utils.events"))
        if (ours or record.levelno >= logging.WARNING) and not record.exc_info:
            tqdm.write(self.format(record), file=sys.stderr)


def interactive() -> bool:
    """Whether stderr is a terminal, so that a progress bar makes sense."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
