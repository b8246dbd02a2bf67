"""The report of a check: for the terminal, as text, and for programs, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seg_ext.data.check.faults import Fault
from seg_ext.data.check.source import Record


@dataclass(frozen=True)
class Report:
    """What was found in one data set.

    Attributes:
        name: of the data set.
        looked_at: False where it could not be read at all.
        faults: errors first.
        statistics: of :meth:`seg_ext.data.check.tally.Tally.statistics`.
        examples: records without errors, those of the rarest classes first.
        trained: whether it is trained on, as far as that is known: the text then says what a config can take over.
    """

    name: str
    looked_at: bool
    faults: list[Fault]
    statistics: dict[str, Any]
    examples: list[Record]
    trained: bool = True

    def count(self, severity: str) -> int:
        """Faults that are an "error" or a "warning"."""
        return sum(fault.kind.severity == severity for fault in self.faults)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the examples, ready for JSON."""
        return {
            "name": self.name,
            "looked_at": self.looked_at,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "faults": [
                {
                    "code": fault.code,
                    **fault.kind._asdict(),
                    "count": len(fault.findings),
                    "places": [{"file": f.file, "detail": f.detail} for f in fault.findings],
                }
                for fault in self.faults
            ],
            "statistics": self.statistics,
        }


def as_dict(reports: Sequence[Report]) -> dict[str, Any]:
    """All reports, ready for JSON."""
    return {
        "errors": sum(report.count("error") for report in reports),
        "warnings": sum(report.count("warning") for report in reports),
        "data_sets": [report.as_dict() for report in reports],
    }


def as_text(report: Report, *, limit: int = 5) -> str:
    """Faults with up to ``limit`` files each, then the statistics."""
    errors, warnings = report.count("error"), report.count("warning")
    looked_at = f"{report.statistics['images']} images" if report.looked_at else "nothing was looked at"
    blocks = [f"{report.name}: {looked_at}, {_plural(errors, 'error')}, {_plural(warnings, 'warning')}"]
    blocks += [_fault(fault, limit) for fault in report.faults]
    statistics = report.statistics
    tables = {"sizes": _sizes, "classes": _classes, "objects": _objects}
    blocks += [table(statistics[key]) for key, table in tables.items() if key in statistics]
    return "\n\n".join([*blocks, *(_yaml(statistics) if report.trained else ())])


def _fault(fault: Fault, limit: int) -> str:
    count = len(fault.findings)
    lines = [f"{fault.kind.severity}: {fault.code}: {fault.kind.title} ({count})"]
    lines += [f"  {f.file}: {f.detail}" if f.detail else f"  {f.file}" for f in fault.findings[:limit]]
    if count > limit:
        lines.append(f"  and {count - limit} more: --limit {count}, or --json FILE")
    return "\n".join([*lines, f"  fix: {fault.kind.fix}"])


def _sizes(sizes: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("pixels", "min", "median", "max")]
    rows += [(side, *(f"{sizes[side][key]}" for key in ("min", "median", "max"))) for side in ("height", "width")]
    return f"{_table(rows)}\n{_plural(sizes['distinct'], 'size')}"


def _classes(classes: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("class", "pixels", "share", "images", "median-frequency weight")]
    for row in (row for row in classes["rows"] if row["pixels"]):
        share = f"{100 * row['share']:.2f} %" if row["share"] >= 5e-5 else "< 0.01 %"
        rows.append((row["name"], f"{row['pixels']}", share, f"{row['images']}", f"{row['weight']:.4g}"))
    ignored = classes["ignored_pixels"]
    return f"{_table(rows)}\nignored: {ignored} pixels, {100 * ignored / (classes['pixels'] + ignored):.2f} %"


def _objects(objects: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("objects", "count", "images", "small", "medium", "large")]
    keys = ("count", "images", "small", "medium", "large")
    rows += [(row["name"], *(f"{row[key]}" for key in keys)) for row in objects["rows"] if row["count"]]
    mean = objects["count"] / objects["annotated_images"]
    lines = [_table(rows), f"{mean:.1f} an image, {objects['most_in_an_image']} at most; small < 32x32, large >= 96x96"]
    if objects["covered_again"]:
        share = 100 * objects["covered_again"] / objects["covered_pixels"]
        lines.append(f"objects overlap: {share:.2f} % of their pixels are covered again")
    return "\n".join(lines)


def _yaml(statistics: dict[str, Any]) -> list[str]:
    """What a config can take over, if there is anything."""
    lines = []
    if "channels" in statistics:
        channels = statistics["channels"]
        grey = channels["format"] == "BGR" and all(len(set(channels[key])) == 1 for key in ("pixel_mean", "pixel_std"))
        note = "  # all images are grey: with L, and one value each, the model takes one channel" * grey
        lines += [f"INPUT: {{FORMAT: {channels['format']}}}{note}", "MODEL:"]
        lines += [f"  {key.upper()}: {_numbers(channels[key])}" for key in ("pixel_mean", "pixel_std")]
    if "classes" in statistics:
        weights = _numbers([row["weight"] for row in statistics["classes"]["rows"]])
        lines += [] if lines else ["MODEL:"]
        lines.append(f"  SEM_SEG_HEAD: {{LOSSES: [{{NAME: cross_entropy, class_weights: {weights}}}]}}")
    return ["\n".join(["# for a config", *lines])] if lines else []


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first on the left, a rule under the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(x.rjust(w) if i else x.ljust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in (lines[0], "-" * len(lines[0]), *lines[1:]))
