"""Data sets that can be fetched and brought into the layout that they are registered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from seg_ext.data.prepare import nuclei
from seg_ext.data.prepare.report import Report

PREPARE: dict[str, Callable[[Path, Path | None], Report]] = {"nuclei": nuclei.prepare}
