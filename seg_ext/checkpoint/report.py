"""What became of every tensor of a checkpoint and of a model when one was loaded into the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

_SHOWN = 3  # names in a line
_STEPS = "num_batches_tracked"  # BatchNorm's, which FrozenBN and old files lack, and nothing reads
_OLD = ("anchor_generator.cell_anchors", "pixel_mean", "pixel_std")  # in old files of detectron2; the config's count


@dataclass
class LoadingReport:
    """Names, those of the model but for ``unexpected``.

    Attributes:
        loaded: tensors that took their values from the file, whatever they are called there.
        renamed: of these, those that the file has under another name -> that name.
        missing: tensors of the model that the file lacks.
        unexpected: tensors of the file that the model lacks.
        mismatched: name -> shape in the file, shape in the model.
        by_class: class scores that were taken over by the names of the classes -> what was found, such as "20 of 21".
    """

    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    by_class: dict[str, str] = field(default_factory=dict)

    @classmethod
    def compare(
        cls, state: Mapping[str, Tensor], model: Mapping[str, Tensor], names: Mapping[str, str]
    ) -> LoadingReport:
        """Of a state dict by the model's names.

        Args:
            state: the file's.
            model: the model's.
            names: the model's name of each tensor whose name was another one in the file -> that one.
        """
        report = cls()
        for key, value in state.items():
            if key not in model:
                if not key.endswith(_STEPS) and not any(old in key for old in _OLD):
                    report.unexpected.append(names.get(key, key))
            elif value.shape != model[key].shape:
                report.mismatched[key] = tuple(value.shape), tuple(model[key].shape)
            else:
                report.loaded.append(key)
        report.missing = [key for key in model if key not in state and not key.endswith(_STEPS)]
        report.renamed = {key: names[key] for key in report.loaded if names.get(key, key) != key}
        return report

    @property
    def clean(self) -> bool:
        """Whether every tensor found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def lacks_most(self) -> bool:
        """Whether more than half of the model's tensors are not in the file, under any shape."""
        there = sum(not key.endswith(_STEPS) for key in self.loaded) + len(self.mismatched)
        return len(self.missing) > there

    def line(self) -> str:
        """Numbers of each kind, and the first names of what found no place."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        parts = [f"{len(self.loaded)} of {total} tensors loaded"]
        if self.renamed:
            parts.append(f"{len(self.renamed)} of them renamed")
        for name, found in self.by_class.items():
            parts.append(f"{name} by class name ({found})")
        for what, names in (("missing in the file", self.missing), ("not in the model", self.unexpected)):
            if names:
                parts.append(f"{len(names)} {what} ({_some(names)})")
        if self.mismatched:
            shapes = [f"{name} {there} there, {here} here" for name, (there, here) in self.mismatched.items()]
            parts.append(f"{len(self.mismatched)} of another shape ({_some(shapes, '; ')})")
        return ", ".join(parts)

    def table(self) -> str:
        """A row for each tensor: what became of it, its name, and its name or shape in the file."""
        rows = [("by class" if key in self.by_class else "loaded", key, "") for key in self.loaded]
        rows = [("renamed", key, self.renamed[key]) if key in self.renamed else (what, key, x) for what, key, x in rows]
        rows += [("missing", key, "") for key in self.missing]
        rows += [("unexpected", key, "") for key in self.unexpected]
        rows += [("mismatched", key, f"{there} there, {here} here") for key, (there, here) in self.mismatched.items()]
        width = max((len(key) for _, key, _ in rows), default=0)
        return "\n".join(f"{what:10}  {key:{width}}  {there}".rstrip() for what, key, there in rows)


def _some(names: Sequence[str], comma: str = ", ") -> str:
    more = len(names) - _SHOWN
    return comma.join(names[:_SHOWN]) + (f"{comma}{more} more" if more > 0 else "")
