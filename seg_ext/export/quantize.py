"""int8 after training: ONNX Runtime's static quantisation, ranges calibrated on images (Jacob et al., 2018)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from seg_ext.errors import UserError

Array = NDArray[Any]
ROUNDS = 9
QUANTIZED = (  # not Pad and what else shares its input's range with a constant, which onnxruntime does not take
    *("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Relu", "Clip", "Concat", "Resize"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)


def quantize(source: Path, target: Path, images: Iterable[Array]) -> int:
    """Write the int8 form of an ONNX file: weights int8 by channel, activations uint8; the description stays.

    7 of the weights' 8 bits are used, so that processors without VNNI do not overflow.

    Args:
        source: of :func:`seg_ext.export.formats.write_onnx`.
        target: to be written.
        images: the graph's input, a batch each; read one at a time.

    Returns:
        The number of batches that set the ranges.

    Raises:
        UserError: there is none, or onnxruntime cannot quantise the model.
    """
    name = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    reader = _Reader(name, images)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # where onnxruntime's tools say what they cannot fold
    try:
        with TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
    except UserError:
        raise
    except Exception as error:  # onnxruntime's own have no common type
        if not reader.count:
            raise UserError("--calibration: the data set has no images to set the ranges of int8 with") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--int8: onnxruntime cannot quantise this model: {reason}") from error
    finally:
        logging.getLogger().setLevel(level)
    _carry_over(source, target)
    return reader.count


def latency_ratio(first: Path, second: Path, image: Array, *, threads: int = 0, rounds: int = ROUNDS) -> float:
    """Median seconds of the second file over the first's, on one input, taking turns, after a warm-up."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = [
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in (first, second)
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for session, times in zip(sessions, seconds, strict=True):
            start = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: image})
            times.append(time.perf_counter() - start)
    return median(seconds[1][1:]) / median(seconds[0][1:])


class _Reader(CalibrationDataReader):
    """onnxruntime's protocol around an iterable."""

    def __init__(self, name: str, images: Iterable[Array]) -> None:
        self._name, self._images, self.count = name, iter(images), 0

    def get_next(self) -> dict[str, Array] | None:
        image = next(self._images, None)
        if image is None:
            return None
        self.count += 1
        return {self._name: np.ascontiguousarray(image)}


def _carry_over(source: Path, target: Path) -> None:
    """Put the source's metadata and names of open axes into the target."""
    quantized, original = onnx.load(str(target)), onnx.load(str(source), load_external_data=False)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(original.metadata_props)
    onnx.save(quantized, str(target))
