"""detectron2's checkpointer with atomic writes and without code in what it reads."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from torch import Tensor, nn

from seg_ext.checkpoint.class_heads import transfer
from seg_ext.checkpoint.detectron2_names import in_our_order, our_names
from seg_ext.checkpoint.files import SIDECAR, is_whole, read_checkpoint, write_whole
from seg_ext.checkpoint.imagenet import explain, fit, fit_timm, widen_first
from seg_ext.checkpoint.locate import HEURISTICS, locate
from seg_ext.checkpoint.report import LoadingReport
from seg_ext.checkpoint.sidecar import classes_of, plain
from seg_ext.errors import UserError

_logger = logging.getLogger(__name__)

BEST = "model_best"
_NUMBERED = re.compile(r"model_\d{7,}\.pth")
_RESUMABLE = re.compile(r"model_(\d{7,}|final)\.pth")


class Checkpointer(DetectionCheckpointer):
    """Saves under a temporary name, then renames; reads tensors, arrays and containers only.

    Beside its own files it reads detectron2's, its DeepLab projects' too, and ImageNet weights of torchvision's ResNets
    and VGG-16 and of timm's models into the backbone, from wherever :func:`seg_ext.checkpoint.locate.locate` finds
    them. Where the classes of file and model are known and differ, their scores are taken over by name.

    Attributes:
        report: what became of every tensor of the file that was loaded last.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        keep: int = 0,
        sidecar: Mapping[str, Any] | None = None,
        partial: bool = False,
        table: bool = False,
        **kwargs: Any,
    ) -> None:
        """As detectron2's.

        Args:
            model: what is saved and loaded.
            save_dir: folder of the checkpoints.
            keep: of the numbered checkpoints the newest so many stay, and the one to resume from; 0 for all.
            sidecar: what every checkpoint says of itself, see :mod:`seg_ext.checkpoint.sidecar`; its classes are the
                model's.
            partial: load a file that lacks more than half of the model.
            table: log what became of every tensor.
            kwargs: detectron2's.

        Raises:
            UserError: a number to keep that is negative.
        """
        if keep < 0:
            raise UserError(f"SOLVER.CHECKPOINT_KEEP {keep}: takes a number of checkpoints, 0 for all")
        super().__init__(model, save_dir, **kwargs)
        self.keep = keep
        self.report = LoadingReport()
        self._sidecar, self._partial, self._table = dict(sidecar or {}), partial, table

    def save(self, name: str, *, metrics: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Write ``name.pth`` into the save directory; an interrupted write leaves the previous files as they were.

        It is then what a run resumes from, but for ``model_best``, which would take the run back.

        Args:
            name: of the file, without its suffix.
            metrics: scores of these weights, for the sidecar.
            kwargs: what else the file is to hold.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(kwargs)
        if self._sidecar:
            data[SIDECAR] = {**self._sidecar, **({"metrics": plain(metrics)} if metrics else {})}
        file = Path(self.save_dir) / f"{name}.pth"
        write_whole(file, lambda stream: torch.save(data, stream))
        if name == BEST:
            return
        self.tag_last_checkpoint(file.name)
        if self.keep:
            for old in [other for other in self._written() if _NUMBERED.fullmatch(other.name)][self.keep :]:
                if old != file:
                    old.unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file a run resumes from."""
        write_whole(
            Path(self.save_dir) / "last_checkpoint", lambda stream: stream.write(last_filename_basename.encode())
        )

    def has_checkpoint(self) -> bool:
        """Whether the save directory holds a checkpoint that a run can go on from, readable or not."""
        return bool(self.save_dir) and (super().has_checkpoint() or bool(self._written()))

    def get_checkpoint_file(self) -> str:
        """The last checkpoint; the one before it with a warning where the last is damaged. The same on all processes.

        Raises:
            UserError: there are some, but none is whole.
        """
        file, line = comm.all_gather(self._last_whole() if comm.is_main_process() else ("", ""))[0]
        if line:
            raise UserError(line)
        return file

    def _last_whole(self) -> tuple[str, str]:
        """The file, or what to say in its place."""
        tagged = super().get_checkpoint_file()
        damaged: list[str] = []
        for file in dict.fromkeys([*([Path(tagged)] if tagged else []), *self._written()]):
            if not is_whole(file):
                damaged.append(str(file))
                continue
            if damaged:
                _logger.warning("%s: missing, truncated or damaged; going on from %s", ", ".join(damaged), file)
            return str(file), ""
        return "", f"{', '.join(damaged)}: missing, truncated or damaged, and there is no other; train without --resume"

    def _written(self) -> list[Path]:
        """Numbered checkpoints and the final one, the newest first."""
        files = [file for file in Path(self.save_dir).glob("model_*.pth") if _RESUMABLE.fullmatch(file.name)]
        return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load what ``path`` stands for, see :func:`seg_ext.checkpoint.locate.locate`; nothing where it is empty.

        Args:
            path: of the weights.
            checkpointables: of the other things in the file those to load; None for all.

        Returns:
            What else the file holds.

        Raises:
            UserError: no such file, none that can be read, one of which nothing fits the model, or, unless ``partial``,
                one that lacks more than half of it; or a state of something else that does not fit.
        """
        if not path:
            _logger.debug("no weights given: the model starts from its initial values")
            return {}
        data = read_checkpoint(locate(path))
        if path.endswith(HEURISTICS):
            data["matching_heuristics"] = True
        try:
            self._fill(data, path)
        except ValueError as error:  # readable, but not for this model
            raise UserError(f"weights {path}: {error}") from error
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in data:
                try:
                    self.checkpointables[key].load_state_dict(data.pop(key))
                except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
                    why = " ".join(str(error).split()) or type(error).__name__
                    raise UserError(f"weights {path}: not a readable checkpoint: its {key}: {why}") from error
        return data

    def _fill(self, data: dict[str, Any], path: str) -> None:
        """Load the state dict, and say what became of it."""
        ours = self.model.state_dict()
        state, names, imagenet = self._named(data, ours)
        by_class = transfer(state, ours, classes_of(data), classes_of({SIDECAR: self._sidecar}))
        shared = state.keys() & ours.keys()
        heads = any(key.startswith(("sem_seg_head.", "roi_heads.")) for key in state)
        alone = bool(shared) and all(key.startswith("backbone.") for key in shared) and not heads
        part = {key: x for key, x in ours.items() if key.startswith("backbone.")} if alone else ours
        self.report = report = LoadingReport.compare(state, part, names)
        report.by_class = by_class
        if not report.loaded:
            raise ValueError(f"nothing in it fits the model: {explain(state, ours)}")
        if report.lacks_most and not imagenet and not self._partial:
            raise ValueError(f"{report.line()}; MODEL.LOADING.PARTIAL True takes what there is")
        self.model.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
        line = report.line() + ("; all but the backbone starts fresh" if len(part) < len(ours) else "")
        _logger.log(logging.INFO if report.clean else logging.WARNING, "weights %s: %s", path, line)
        if self._table:
            _logger.info("tensors of %s\n%s", path, report.table())

    @staticmethod
    def _named(data: dict[str, Any], ours: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], bool]:
        """The file's tensors by the model's names, renamed ones' names there, and whether it is an ImageNet network."""
        state: dict[str, Tensor] = data.pop("model")
        if data.get("matching_heuristics"):
            widen_first(state, ours)
            return dict(align_and_update_state_dicts(ours, state, data.get("__author__") == "Caffe2")), {}, False
        if not state.keys() & ours.keys():
            fitted = fit(state, ours) or fit_timm(state, ours)
            if fitted:
                return fitted, {}, True
        names = our_names(state, ours)
        return in_our_order(state, names), {name: theirs for theirs, name in names.items()}, False
