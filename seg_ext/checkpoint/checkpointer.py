"""detectron2's checkpointer with atomic writes and without code in what it reads."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from seg_ext.errors import UserError

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


class Checkpointer(DetectionCheckpointer):
    """Saves under a temporary name, then renames; reads tensors, arrays and containers only."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` into the save directory; an interrupted write leaves the previous files as they were."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(kwargs)
        file = Path(self.save_dir) / f"{name}.pth"
        partial = file.with_suffix(".pth.partial")
        with partial.open("wb") as stream:
            torch.save(data, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
        self.tag_last_checkpoint(file.name)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a local file or URL.

        Raises:
            UserError: no such file, or one that is no checkpoint.
        """
        if path and "://" not in path and not Path(path).is_file():
            raise UserError(f"weights {path} not found")
        try:
            return super().load(path, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, UnicodeDecodeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"weights {path}: not a readable checkpoint: {first}") from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        with self.path_manager.open(filename, "rb") as stream:
            data = _ArrayUnpickler(stream, encoding="latin1").load()
        if "model" in data and "__author__" in data:
            return data
        weights = data.get("blobs", data)
        weights = {key: value for key, value in weights.items() if not key.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays and containers; refuses anything that could run code, by name."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        super().__init__(stream, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS_AND_CONTAINERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which weights do not need")
