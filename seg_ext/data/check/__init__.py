"""Finding what is wrong with data sets before a network is trained on them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seg_ext.data.check.faults import FAULTS, Fault, Finding, group
from seg_ext.data.check.report import Report, as_dict, as_text
from seg_ext.data.check.scan import Rules, scan_record
from seg_ext.data.check.source import read_source
from seg_ext.data.check.tally import Tally

__all__ = ["FAULTS", "Fault", "Finding", "Report", "as_dict", "as_text", "check_data"]

_AHEAD = 4  # records in the pool for each worker


def check_data(
    names: Sequence[str],
    *,
    train: Collection[str],
    test: Collection[str],
    image_format: str | None = None,
    bands: int | None = None,
    num_workers: int | None = None,
    examples: int = 16,
    progress: bool = False,
) -> list[Report]:
    """Check registered data sets; whatever is wrong with them is in the reports and raises nothing.

    Args:
        names: of the data sets.
        train: those that are trained on.
        test: those that are tested on; an image in both is an error.
        image_format: INPUT.FORMAT of the model; None for BGR, and BANDS where that does not fit.
        bands: channels of the model; None for any.
        num_workers: threads; None for as many as there are cores, 8 at most.
        examples: records in each report's ``examples``.
        progress: show a bar on stderr.
    """
    seen = _Seen()
    workers = num_workers or min(8, os.cpu_count() or 1)
    reports = []
    for name in names:
        source = read_source(name)
        rules = Rules.of(source, image_format=image_format, bands=bands)
        tally, findings = Tally(name, rules), list(source.findings)
        if name in train and name in test:
            findings.append(Finding("leaked_image", name, "the whole data set is in both"))
        scans = _in_order(partial(scan_record, rules=rules), source.records, workers)
        bar = tqdm(scans, f"check {name}", len(source.records), unit="img", disable=not progress, leave=False)
        for index, (record, scan) in enumerate(zip(source.records, bar, strict=True)):
            tally.add(index, record, scan)
            findings += scan.findings
            if scan.digest is not None:
                findings += seen.add(scan.digest, name, record["file_name"], tested=name in test and name not in train)
        shown = [source.records[index] for index in tally.rarest(examples)]
        faults = group([*findings, *tally.findings()])
        trained = name in train or name not in test
        reports.append(Report(name, source.looked_at, faults, tally.statistics(), shown, trained))
    return reports


class _Seen:
    """Images by their content: the first of each among the training, and among the test data."""

    def __init__(self) -> None:
        self._first: dict[tuple[bytes, bool], tuple[str, str]] = {}  # data set and file

    def add(self, digest: bytes, name: str, file: str, *, tested: bool) -> list[Finding]:
        """Enter an image; what is wrong with it."""
        found = []
        if (other := self._first.get((digest, not tested))) is not None:
            found.append(Finding("leaked_image", file, f"is {other[1]} of {other[0]}"))
        first = self._first.get((digest, tested))
        if first is None:
            self._first[digest, tested] = name, file
        elif first[0] == name or Path(first[1]).resolve() != Path(file).resolve():
            found.append(Finding("duplicate_image", file, f"is {first[1]} of {first[0]}"))
        return found


def _in_order(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """Results in the order of the items, of which a few at a time are in the pool."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
