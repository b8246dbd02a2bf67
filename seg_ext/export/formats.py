"""The formats: what writes a graph to a file with its description inside, and what runs the file again."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.export.graph import Graph

DOCUMENT = "seg_ext.json"  # the description's name among a torch file's extra files
KEY = "seg_ext"  # and among an ONNX file's metadata
SIDES = (96, 128)  # of the example
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")

Run = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Exporter:
    """A format: its suffix, ``write(graph, file, document)``, ``load(file)`` to a function, and what it needs.

    ``refuses`` says why it does not take Mask R-CNN, where it does not.
    """

    suffix: str
    write: Callable[[Graph, Path, str], None]
    load: Callable[[Path], Run]
    needs: tuple[str, ...] = ()
    refuses: str = ""

    def check(self, name: str) -> None:
        """Refuse a format whose packages are not installed.

        Raises:
            UserError: with the extra to install.
        """
        missing = [package for package in self.needs if find_spec(package) is None]
        if missing:
            raise UserError(f"--format {name} needs {', '.join(missing)}: pip install 'seg-ext[export]'")


def write_onnx(graph: Graph, file: Path, document: str) -> None:
    """ONNX by torch's dynamo exporter, weights and description in the one file."""
    with _quiet():
        program = torch.onnx.export(
            graph,
            (_example(graph),),
            dynamo=True,
            dynamic_shapes=(dict(graph.dynamic),),
            input_names=["image"],
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None  # dynamo gives one
    program.model.metadata_props[KEY] = document
    program.save(file, external_data=False)


def load_onnx(file: Path, *, threads: int = 0) -> Run:
    """The file in ONNX Runtime on the CPU; ``threads`` 0 takes one a core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def write_torch_export(graph: Graph, file: Path, document: str) -> None:
    """A program of torch.export (.pt2)."""
    shapes = {"image": dict.fromkeys(graph.dynamic, torch.export.Dim.DYNAMIC)}
    with _quiet():
        program = torch.export.export(graph, (_example(graph),), dynamic_shapes=shapes)
        torch.export.save(program, file, extra_files={DOCUMENT: document})


def load_torch_export(file: Path) -> Run:
    """The program, read again."""
    with _quiet():
        module = torch.export.load(file).module()
    return lambda image: module(image)


def write_torchscript(graph: Graph, file: Path, document: str) -> None:
    """TorchScript by tracing: for C++ and for what cannot run anything newer."""
    from detectron2.export.torchscript_patch import patch_builtin_len

    with _quiet():
        with patch_builtin_len():  # of detectron2, which else makes the number of boxes a constant
            traced = torch.jit.trace(graph, _example(graph), check_trace=False)
        traced.save(str(file), _extra_files={DOCUMENT: document})


def load_torchscript(file: Path) -> Run:
    """The script, read again."""
    with _quiet():
        module = torch.jit.load(str(file), map_location="cpu")
    return lambda image: module(image)


def _example(graph: Graph) -> Tensor:
    """As many images as the graph may get, since a batch of 1 would be taken for a constant."""
    return graph.example(max(graph.batches), *SIDES)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without gradients, and without the exporters' talk of their own insides: the file is compared afterwards."""
    before = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


_REGIONS = "detectron2's proposals and masks branch on how many boxes an image has, which a captured graph cannot"
EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(".onnx", write_onnx, load_onnx, ("onnx", "onnxscript", "onnxruntime"), _REGIONS),
    "torch-export": Exporter(".pt2", write_torch_export, load_torch_export, (), _REGIONS),
    "torchscript": Exporter(".ts", write_torchscript, load_torchscript),
}
