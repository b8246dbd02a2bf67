"""Files of weights: PyTorch's, pickles of detectron2 and Caffe2, safetensors; read without running code."""

from __future__ import annotations

import codecs
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from seg_ext.errors import UserError

FORMATS = "a PyTorch file, a pickle of arrays (.pkl), or .safetensors"
SIDECAR = "sidecar"  # what a checkpoint says of itself, see seg_ext.checkpoint.sidecar
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
_UNREAD = ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr")  # the log in mmengine's checkpoints
_STATES = ("model", "state_dict", "model_state", "model_state_dict")  # where a state dict may lie
_TRAINING = {"optimizer", "optimizer_state_dict", "param_groups", "scheduler", "lr_scheduler"}
_WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")  # by DistributedDataParallel and torch.compile
_ZIP = b"PK\x03\x04"


def read_checkpoint(file: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """All that a file of weights holds, on the CPU: "model", its state dict of tensors, beside whatever else there is.

    Pickles may hold numbers, text, containers, tensors and arrays, and nothing that has to be imported.

    Args:
        file: see FORMATS. Caffe2's pickles and those of detectron2's zoo that ask for it get "matching_heuristics".
        mapped: tensors of a PyTorch file stay in it until they are used; for a look that ends before the file changes.

    Raises:
        UserError: no such file, none of FORMATS, empty, truncated, one that would run code, or one without weights.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"weights {path} not found")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            begin = stream.read(len(_ZIP))
        if not size:
            raise UserError(f"weights {path}: not a readable checkpoint: it is empty (0 bytes)")
        if path.suffix == ".safetensors":
            data = _read_safetensors(path)
        elif path.suffix == ".pkl" and begin != _ZIP:
            data = _read_pickle(path)
        else:
            data = _read_torch(path, begin, mapped=mapped)
    except OSError as error:
        raise UserError(f"weights {path}: cannot be read: {error.strerror or error}") from error
    data["model"] = _tensors(data["model"], str(path))
    return data


def read_sidecar_of(file: str | Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None where it says nothing.

    Raises:
        UserError: as :func:`read_checkpoint`.
    """
    path = Path(file)
    if path.suffix == ".safetensors" and path.is_file() and path.stat().st_size:
        found = _metadata(path).get(SIDECAR)
        return found if isinstance(found, dict) else None
    found = read_checkpoint(path, mapped=True).get(SIDECAR)
    return found if isinstance(found, dict) else None


def write_safetensors(file: Path, state: Mapping[str, Tensor], *, sidecar: Mapping[str, Any] | None = None) -> None:
    """Write a state dict whole or not at all; what it says of itself goes into the header as JSON.

    Tensors that share memory are written each by itself.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    metadata = {"format": "pt"} | ({SIDECAR: json.dumps(sidecar)} if sidecar else {})
    content = save(tensors, metadata)
    write_whole(file, lambda stream: stream.write(content))


def is_whole(file: Path) -> bool:
    """Whether a checkpoint is there and every byte of it is as it was written, by the checksums within."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises whatever damaged bytes lead it to
        return False


def write_whole(file: Path, content: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all, and so that a power cut afterwards does not take it back."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            content(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"weights {path}: truncated, or no safetensors file: {_first_line(error)}") from error
    return {"model": state, **_metadata(path)}


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            text = (stream.metadata() or {}).get(SIDECAR)
        return {SIDECAR: json.loads(text)} if text else {}
    except (SafetensorError, ValueError) as error:
        raise UserError(f"weights {path}: its header is not readable: {_first_line(error)}") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            data = _ArrayUnpickler(stream, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # pickle raises whatever the bytes lead it to
        raise UserError(f"weights {path}: not a readable checkpoint: {_first_line(error)}") from error
    if not isinstance(data, dict):
        return {"model": data}
    if "model" in data and "__author__" in data:
        return data
    weights = data.get("blobs", data)
    if isinstance(weights, dict):
        weights = {key: value for key, value in weights.items() if not str(key).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _read_torch(path: Path, begin: bytes, *, mapped: bool) -> dict[str, Any]:
    if begin == _ZIP and not zipfile.is_zipfile(path):
        raise UserError(f"weights {path}: truncated: {path.stat().st_size} bytes of a longer PyTorch file")
    try:
        with torch.serialization.safe_globals(_array_globals()):
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and begin == _ZIP)
    except Exception as error:  # torch raises whatever the bytes lead it to
        text = str(error) if begin == _ZIP else f"{error} {_refused_in_pickle(path)}"
        refused = re.search(r"(?:GLOBAL|class|refers to) ([\w.]+\.\w+)|GLOBAL (\w+)", text)  # builtins by name alone
        why = f"it refers to {refused[1] or refused[2]}, which weights do not need" if refused else f"takes {FORMATS}"
        raise UserError(f"weights {path}: not a readable checkpoint: {why}") from error
    if not isinstance(data, dict):
        return {"model": data}
    inner = next((data[key] for key in _STATES if isinstance(data.get(key), dict)), None)
    if inner is None:
        return {"model": data}
    if isinstance(inner.get("state_dict"), dict):
        inner = inner["state_dict"]
    return {**data, "model": inner}


def _refused_in_pickle(path: Path) -> str:
    """Why a plain pickle is refused, whatever its name ends in; empty where it is none or harmless."""
    try:
        _read_pickle(path)
    except UserError as error:
        return str(error)
    return ""


def _tensors(state: Any, path: str) -> dict[str, Tensor]:
    """The state dict as tensors, without the prefixes of a model that was wrapped."""
    if not isinstance(state, Mapping) or not all(isinstance(x, (Tensor, np.ndarray)) for x in state.values()):
        if isinstance(state, Mapping) and state.keys() & _TRAINING:
            raise UserError(f"weights {path}: holds the state of an optimizer or schedule, and no weights")
        raise UserError(f"weights {path}: holds no state dict, at its top or under {', '.join(map(repr, _STATES))}")
    if not state:
        raise UserError(f"weights {path}: holds an empty state dict")
    try:
        named = {str(key): x if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for key, x in state.items()}
    except (TypeError, ValueError) as error:  # of text, of objects, of the other byte order
        raise UserError(f"weights {path}: holds arrays that are no tensors: {_first_line(error)}") from error
    other = next((key for key, x in named.items() if x.layout != torch.strided or x.is_meta or x.is_quantized), None)
    if other is not None:
        raise UserError(f"weights {path}: {other} is sparse, quantized or without values; takes plain tensors")
    return {_WRAPPED.sub("", key): x for key, x in named.items()}


def _array_globals() -> list[Any]:
    """What arrays inside a PyTorch file refer to, under the names of NumPy 1 and 2."""
    core = np.array(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    renamed = [
        (function, f"numpy.{home}.multiarray.{name}")
        for function, name in ((core, "_reconstruct"), (scalar, "scalar"))
        for home in ("core", "_core")
    ]
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdU"}
    return [np.ndarray, np.dtype, codecs.encode, *renamed, *kinds, *((_Unread, name) for name in _UNREAD)]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class _Unread:
    """Stands where a file refers to one of _UNREAD; keeps nothing of it and runs nothing."""

    def __init__(self, *args: Any) -> None:
        """Take what the file would build it from."""

    def __setstate__(self, state: Any) -> None:
        """Take what the file would fill it with."""


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays and containers; refuses anything that could run code, by name."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        super().__init__(stream, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS_AND_CONTAINERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which weights do not need")
