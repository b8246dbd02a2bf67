"""Images through a predictor without waiting: read ahead in threads, batched by size, written behind in threads."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch

from seg_ext.errors import UserError
from seg_ext.inference.contract import Predict

T = TypeVar("T")
R = TypeVar("R")


class Failure(NamedTuple):
    """What is wrong with one input, in one line; the others are not concerned."""

    line: str


class Sample(NamedTuple):
    """An image on its way.

    Attributes:
        item: what it is; any value.
        inputs: for the predictor.
        image: as it was read.
    """

    item: Any
    inputs: dict[str, Any]
    image: Any


def run_pipeline(
    items: Iterable[Any],
    *,
    read: Callable[[Any], Sample],
    predict: Predict,
    write: Callable[[Sample, Any], Any],
    batch_size: int = 1,
    threads: int = 2,
) -> Generator[tuple[Any, Any], None, None]:
    """Read, predict and write each item; while one batch is predicted, others are read and written.

    No more than a few batches are in memory. Items of equal input size that come close to each other share a batch;
    with ``batch_size`` 1 the order is kept.

    Args:
        items: any values.
        read: in a thread; raises UserError for what cannot be read, and what else goes wrong is that item's too.
        predict: for a batch, in the calling thread. A batch that fails is taken apart, so that one image's failure is
            its own.
        write: in a thread; what it returns is the result. It raises UserError for what cannot be written, which ends
            the run.
        batch_size: images a batch, at most.
        threads: for reading, and as many for writing.

    Yields:
        (item, result), the result being a :class:`Failure` where the item could not be read or predicted.
    """
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
        samples = _ahead(items, lambda item: _read(read, item), readers, threads + 2 * batch_size)
        outputs = (found for batch in _batches(samples, batch_size) for found in _predict(predict, batch))
        try:
            yield from _ahead(outputs, lambda found: _write(write, *found), writers, threads + batch_size)
        finally:
            readers.shutdown(wait=True, cancel_futures=True)
            writers.shutdown(wait=True)


def describe(error: BaseException) -> str:
    """One line for an error that a single image caused."""
    if isinstance(error, UserError):
        return error.line
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory; give a smaller --batch-size, or TEST.SLIDING_WINDOW.SIZE for a large image"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"cannot be predicted: {type(error).__name__}{': ' if lines else ''}{lines[0] if lines else ''}"


def _ahead(items: Iterable[T], work: Callable[[T], R], pool: ThreadPoolExecutor, most: int) -> Iterator[R]:
    """``map`` with at most so many calls running or waiting to be taken."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        while len(waiting) >= most or (waiting and waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(read: Callable[[Any], Sample], item: Any) -> Sample | tuple[Any, Failure]:
    try:
        return read(item)
    except Exception as error:
        return item, Failure(describe(error))


def _batches(samples: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Batches of one input size; at most four batches' images wait for others of their size."""
    waiting: dict[Any, list[Any]] = {}
    for sample in samples:
        shape = tuple(sample.inputs["image"].shape) if isinstance(sample, Sample) else None
        group = waiting.setdefault(shape, [])
        group.append(sample)
        if len(group) == size or shape is None:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) > 4 * size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _predict(predict: Predict, batch: list[Any]) -> Iterator[tuple[Any, Any]]:
    if not isinstance(batch[0], Sample):
        yield from batch
        return
    try:
        outputs = predict([sample.inputs for sample in batch])
    except Exception as error:
        failure = Failure(describe(error))  # the error goes here, and with it the memory that its frames hold
    else:
        yield from zip(batch, outputs, strict=True)
        return
    if len(batch) == 1:
        yield batch[0].item, failure
        return
    for sample in batch:
        yield from _predict(predict, [sample])


def _write(write: Callable[[Sample, Any], Any], sample: Any, output: Any) -> tuple[Any, Any]:
    if isinstance(output, Failure):
        return sample, output
    try:
        return sample.item, write(sample, output)
    except UserError as error:
        if getattr(error.__cause__, "errno", None) != errno.ENAMETOOLONG:  # anything else stops the images to come too
            raise
        return sample.item, Failure(error.line)
