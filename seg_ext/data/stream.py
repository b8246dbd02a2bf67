"""An endless stream of mapped samples in batches: each sample is a function of seed, rank and stream position."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset, Sampler

from seg_ext.errors import UserError

Record = Mapping[str, Any]
Mapper = Callable[[Record, Sequence[Record]], dict[str, Any]]

ON_ERROR = ("stop", "skip")
MOST_IN_A_ROW = 100  # samples that fail one after the other

logger = logging.getLogger(__name__)


class Skipped(NamedTuple):
    """A sample that could not be read: the one line that says why."""

    line: str


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed numpy's, Python's and torch's global CPU generators by non-negative numbers; put them back afterwards."""
    words = np.random.SeedSequence(key).generate_state(4)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.default_generator.manual_seed(int(words[0]))  # torch.manual_seed would reach the GPUs' too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class TrainLoader:
    """Batches without end. However many workers there are, and however far they read ahead, they are the same.

    Iterating goes on from ``position``: a loader that is given another's ``position`` as ``start``, and its
    ``pending``, gives the batches that the other would have given next.

    Attributes:
        position: next place in the stream of this process that has not been looked at.
        pending: places before it whose samples wait for others of their aspect ratio.
        skipped: what is wrong with the samples that were left out, each beginning with a path, and how often.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Mapper,
        sampler: Iterable[int],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        group: bool = False,
        workers: int = 0,
        on_error: str = "stop",
        start: int = 0,
        pending: Collection[int] = (),
    ) -> None:
        """Set up the stream; nothing is read yet.

        Args:
            records: kept in one piece of memory that worker processes share.
            mapper: called with a record and all of them; its randomness is that of numpy's, Python's and torch's
                global generators.
            sampler: the endless indices of this process's samples, the same in each iteration over it.
            batch_size: of this process.
            seed: of the samples, not negative.
            rank: of this process; others see other randomness.
            group: put landscapes and portraits into batches of their own, by "width" and "height" of the samples.
            workers: processes that map; 0 for this one.
            on_error: "stop" with the UserError of a sample, or "skip" the sample: the next position takes its place.
            start: position to begin with.
            pending: positions before it that are mapped again first.
        """
        if on_error not in ON_ERROR:
            raise UserError(f"DATALOADER.ON_ERROR is {on_error!r}; it must be stop or skip")
        shared = DatasetFromList(list(records), copy=False)
        self.samples = _Samples(shared, mapper, seed=seed, rank=rank)
        self.sampler, self.batch_size, self.group, self.workers = sampler, batch_size, group, workers
        self.on_error = on_error
        self.position, self.pending = start, sorted(pending)
        self.skipped: dict[str, int] = {}

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Lists of ``batch_size`` mapped samples.

        Raises:
            UserError: a sample failed, or :data:`MOST_IN_A_ROW` of them did where they are skipped.
        """
        groups: tuple[list[Any], list[Any]] = ([], [])
        failed = 0
        for position, sample in self._mapped():
            self.position = max(self.position, position + 1)
            if isinstance(sample, Skipped):
                if self.on_error == "stop":
                    raise UserError(sample.line)  # here: raised in a worker, it would delay the workers' end by seconds
                failed += 1
                self._note(sample.line, failed)
                continue
            failed = 0
            group = groups[self.group and sample["width"] <= sample["height"]]
            group.append((position, sample))
            if len(group) == self.batch_size:
                batch = [sample for _, sample in group]
                group.clear()
                self.pending = sorted(position for waiting in groups for position, _ in waiting)
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, in plain containers; what was skipped so far."""
        return {"position": self.position, "pending": list(self.pending), "skipped": dict(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; what iterates over the loader already does not notice."""
        self.position, self.pending = state["position"], sorted(state["pending"])
        self.skipped = dict(state["skipped"])

    def _mapped(self) -> Iterator[tuple[int, dict[str, Any] | Skipped]]:
        loader = DataLoader(
            self.samples,
            sampler=_Places(self.sampler, self.position, frozenset(self.pending)),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            prefetch_factor=max(2, -(-2 * self.batch_size // self.workers)) if self.workers else None,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        with _opencv_alone() if self.workers else nullcontext():
            return iter(loader)

    def _note(self, line: str, failed: int) -> None:
        if line not in self.skipped:
            logger.warning("skipped: %s", line)
        self.skipped[line] = self.skipped.get(line, 0) + 1
        if failed == MOST_IN_A_ROW:
            raise UserError(f"{failed} training samples in a row cannot be read; the last: {line}")


class _Places(Sampler[tuple[int, int]]):
    """(position, index) from ``start`` on, after the ``pending`` ones; only the main process iterates over it."""

    def __init__(self, indices: Iterable[int], start: int, pending: frozenset[int]) -> None:
        self.indices, self.start, self.pending = indices, start, pending

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for position, index in zip(count(), self.indices, strict=False):
            if position >= self.start or position in self.pending:
                yield position, int(index)


class _Samples(Dataset[tuple[int, Any]]):
    def __init__(self, records: Any, mapper: Mapper, *, seed: int, rank: int) -> None:
        self.records, self.mapper, self.key = records, mapper, (seed, rank)

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, dict[str, Any] | Skipped]:
        position, index = place
        with seeded(*self.key, position):
            try:
                return position, self.mapper(self.records[index], self.records)
            except UserError as error:
                return position, Skipped(error.line)


def _as_it_is(sample: Any) -> Any:
    return sample


@contextmanager
def _opencv_alone() -> Iterator[None]:
    """OpenCV without threads in the processes that are forked here, which are threads enough.

    Its pool must be gone before a fork: a child that has it, and changes the number of threads, waits for ever.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
