"""What a preparation tells its caller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Report:
    """Where the data are and what they hold.

    Attributes:
        path: folder of the data set.
        fresh: whether this call made it; False where it was complete before.
        lines: one for each split.
    """

    path: Path
    fresh: bool
    lines: list[str]
