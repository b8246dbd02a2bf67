"""Where a training's numbers go beside its own files: Weights & Biases and MLflow, each a package of its own."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from seg_ext.checkpoint.sidecar import plain
from seg_ext.errors import UserError

_WINDOW = 20  # iterations whose median a noisy number is written as, as in metrics.json


class TrackingWriter(EventWriter, ABC):
    """Numbers of an :class:`EventStorage` by iteration, each once; the run is opened when the first are there."""

    package: str

    def __init__(self, cfg: CfgNode, *, pictures: bool = False) -> None:
        """Import the package.

        Args:
            cfg: the config, which goes with the run; the tracker's own settings are its environment variables.
            pictures: whether the storage's pictures are this writer's to take.

        Raises:
            UserError: the package is missing.
        """
        try:
            self._library: Any = import_module(self.package)
        except ImportError as error:
            line = f"WRITERS {self.package}: needs {self.package}: pip install 'seg-ext[{self.package}]'"
            raise UserError(line) from error
        self._cfg, self._pictures = cfg, pictures
        self._run: Any = None
        self._id_file = Path(cfg.OUTPUT_DIR) / f"{self.package}_run"
        self._last_write = -1

    @property
    def last_write(self) -> int:
        """Last iteration that was written."""
        return self._last_write

    def go_on(self, last_write: int) -> None:
        """Write to the run that this run folder had, from the iteration after that one."""
        self._last_write = last_write
        if self._id_file.is_file():
            self._run = self.open(self._id_file.read_text().strip())

    def write(self) -> None:
        """What is new, by iteration."""
        storage = get_event_storage()
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last_write:
                new.setdefault(iteration, {})[name] = value
        pictures = storage._vis_data if self._pictures else []
        if (new or pictures) and self._run is None:
            self._run = self.open(None)
        for iteration, values in sorted(new.items()):
            self.log(values, iteration)
            self._last_write = iteration
        for name, picture, iteration in pictures:
            self.show(name, picture, iteration)
        if self._pictures:
            storage.clear_images()

    @abstractmethod
    def open(self, run_id: str | None) -> Any:
        """Begin a run, or go on with that of this id; note the id."""

    @abstractmethod
    def log(self, values: dict[str, float], iteration: int) -> None:
        """Write numbers of one iteration."""

    @abstractmethod
    def show(self, name: str, picture: Any, iteration: int) -> None:
        """Write an (3, H, W) uint8 picture."""


class WandbWriter(TrackingWriter):
    """Weights & Biases: its project, entity and mode are those of WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE."""

    package = "wandb"

    def open(self, run_id: str | None) -> Any:
        """See :meth:`TrackingWriter.open`."""
        folder = Path(self._cfg.OUTPUT_DIR)
        run = self._library.init(
            dir=str(folder), name=folder.resolve().name, config=plain(self._cfg), id=run_id, resume="allow"
        )
        self._id_file.write_text(run.id)
        return run

    def log(self, values: dict[str, float], iteration: int) -> None:
        """See :meth:`TrackingWriter.log`."""
        self._run.log(values, step=iteration)

    def show(self, name: str, picture: Any, iteration: int) -> None:
        """See :meth:`TrackingWriter.show`; W&B takes no step back, so that a picture is of the last one written."""
        step = max(iteration, self._last_write)
        self._run.log({name: self._library.Image(picture.transpose(1, 2, 0))}, step=step)

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()


class MlflowWriter(TrackingWriter):
    """MLflow: its server and experiment are those of MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

    package = "mlflow"

    def open(self, run_id: str | None) -> Any:
        """See :meth:`TrackingWriter.open`."""
        name = Path(self._cfg.OUTPUT_DIR).resolve().name
        run = self._library.start_run(**({"run_id": run_id} if run_id else {"run_name": name}))
        self._library.log_text(self._cfg.dump(), "config.yaml")
        self._id_file.write_text(run.info.run_id)
        return run

    def log(self, values: dict[str, float], iteration: int) -> None:
        """See :meth:`TrackingWriter.log`; letters that MLflow refuses in a name become underscores."""
        named = {re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII): value for name, value in values.items()}
        self._library.log_metrics(named, step=iteration)

    def show(self, name: str, picture: Any, iteration: int) -> None:
        """See :meth:`TrackingWriter.show`."""
        self._library.log_image(picture.transpose(1, 2, 0), f"{name}/{iteration:07d}.png")

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._library.end_run()


TRACKERS: dict[str, Callable[..., TrackingWriter]] = {"wandb": WandbWriter, "mlflow": MlflowWriter}
WRITERS = ("json", "tensorboard", *TRACKERS)


def build_trackers(cfg: CfgNode) -> list[EventWriter]:
    """Those of WRITERS that are no files of the run folder; pictures are TensorBoard's where it is among WRITERS.

    Raises:
        UserError: a name that is not known, or a package that is missing.
    """
    unknown = [name for name in cfg.WRITERS if name not in WRITERS]
    if unknown:
        raise UserError(f"WRITERS {unknown[0]!r}: takes {', '.join(WRITERS)}")
    names = [name for name in TRACKERS if name in cfg.WRITERS]
    taken = "tensorboard" in cfg.WRITERS
    return [TRACKERS[name](cfg, pictures=not taken and name == names[0]) for name in names]


def shows_pictures(cfg: CfgNode) -> bool:
    """Whether any of WRITERS takes pictures."""
    return bool({"tensorboard", *TRACKERS} & set(cfg.WRITERS))
