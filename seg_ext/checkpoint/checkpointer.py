"""detectron2's checkpointer with atomic writes and without code in what it reads."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer

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


class Checkpointer(DetectionCheckpointer):
    """Saves under a temporary name, then renames; reads tensors, arrays and containers only.

    Beside its own files and detectron2's it reads ImageNet weights of torchvision's ResNets and VGG-16 into the
    backbone, see `seg_ext.checkpoint.imagenet.fit`.
    """

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


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays and containers; refuses anything that could run code, by name."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        super().__init__(stream, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS_AND_CONTAINERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which weights do not need")
