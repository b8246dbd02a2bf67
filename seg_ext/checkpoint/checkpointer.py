"""detectron2's checkpointer with atomic writes and without code in what it reads."""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from seg_ext.checkpoint.imagenet import explain, fit, widen_first
from seg_ext.errors import UserError

_logger = logging.getLogger(__name__)
_ARRAYS_AND_CONTAINERS = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}

BEST = "model_best"
_NUMBERED = re.compile(r"model_\d{7,}\.pth")
_RESUMABLE = re.compile(r"model_(\d{7,}|final)\.pth")


class Checkpointer(DetectionCheckpointer):
    """Saves under a temporary name, then renames; reads tensors, arrays and containers only.

    Beside its own files and detectron2's it reads ImageNet weights of torchvision's ResNets and VGG-16 into the
    backbone, see `seg_ext.checkpoint.imagenet.fit`.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, keep: int = 0, **kwargs: Any) -> None:
        """As detectron2's.

        Args:
            model: what is saved and loaded.
            save_dir: folder of the checkpoints.
            keep: of the numbered checkpoints the newest so many stay, and the one to resume from; 0 for all.
            kwargs: detectron2's.

        Raises:
            UserError: a number to keep that is negative.
        """
        if keep < 0:
            raise UserError(f"SOLVER.CHECKPOINT_KEEP {keep}: takes a number of checkpoints, 0 for all")
        super().__init__(model, save_dir, **kwargs)
        self.keep = keep

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` into the save directory; an interrupted write leaves the previous files as they were.

        It is then what a run resumes from, but for ``model_best``, which would take the run back.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(kwargs)
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

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a local file or URL.

        Raises:
            UserError: no such file, one that is no checkpoint, or one of which nothing fits the model.
        """
        if path and "://" not in path and not Path(path).is_file():
            raise UserError(f"weights {path} not found")
        try:
            return super().load(path, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"weights {path}: not a readable checkpoint: {first}") from error
        except ValueError as error:  # readable, but not for this model
            raise UserError(f"weights {path}: {error}") from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            data = super()._load_file(filename)
            if isinstance(data["model"], dict) and "state_dict" in data["model"]:
                data["model"] = data["model"]["state_dict"]
            return data
        with self.path_manager.open(filename, "rb") as stream:
            data = _ArrayUnpickler(stream, encoding="latin1").load()
        if not isinstance(data, dict) or ("model" in data and "__author__" in data):
            return data if isinstance(data, dict) else {"model": data}
        weights = data.get("blobs", data)
        weights = {key: value for key, value in weights.items() if not key.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state, ours = checkpoint["model"], self.model.state_dict()
        if not isinstance(state, dict) or not all(isinstance(x, (torch.Tensor, np.ndarray)) for x in state.values()):
            raise ValueError("holds no state dict, at its top or under 'model' or 'state_dict'")
        self._convert_ndarray_to_tensor(state)
        bare = {key.removeprefix("module."): x for key, x in state.items()}
        if checkpoint.get("matching_heuristics"):
            widen_first(state, ours)
        elif not bare.keys() & ours.keys():
            checkpoint["model"] = fit(bare, ours) or state
        incompatible = super()._load_model(checkpoint)
        parameters = {name for name, _ in self.model.named_parameters()}
        loaded = parameters - set(incompatible.missing_keys)
        if not loaded:
            raise ValueError(f"nothing in it fits the model: {explain(bare, ours)}")
        _logger.info("%d of %d parameters of the model loaded", len(loaded), len(parameters))
        return incompatible


def is_whole(file: Path) -> bool:
    """Whether a checkpoint is there and every byte of it is as it was written, by the checksums within."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False


def write_whole(file: Path, content: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all, and so that a power cut afterwards does not take it back."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        content(stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays and containers; refuses anything that could run code, by name."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        super().__init__(stream, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS_AND_CONTAINERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which weights do not need")
