"""Which images belong to which split: lists of names, or fractions by a hash of the name."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from seg_ext.errors import UserError

SPLITS = ("train", "val", "test")
Choose = Callable[[Iterable[str]], set[str]]  # of the file names of all images, those of one split


def choose_all(names: Iterable[str]) -> set[str]:
    """Every image."""
    return set(names)


def key_of(file_name: str) -> str:
    """Name of an image in a split: its path below the folder of images, without suffix."""
    return Path(file_name).with_suffix("").as_posix()


def choose_listed(name: str, lists: Mapping[str, str], split: str, names: Iterable[str]) -> set[str]:
    """The images that a list names, by file name or, where only one has it, by stem; empty lines do not count.

    Args:
        name: of the data set, for errors.
        lists: split -> text file with an image a line.
        split: the one that is wanted.
        names: file names of all images.

    Raises:
        UserError: a list is missing, names an image that is not there, or shares one with another list.
    """
    known = list(names)
    stems = Counter(map(key_of, known))
    by_line = {key_of(file): file for file in known if stems[key_of(file)] == 1} | {file: file for file in known}
    found: dict[str, str] = {}  # file name -> split
    chosen: set[str] = set()
    for other, file in lists.items():
        for number, line in enumerate(_lines(name, Path(file)), start=1):
            if line not in by_line:
                if line and other == split:
                    raise UserError(f"data set {name}: {file}, line {number}: no image {line!r}; a line is a file name")
                continue
            image = by_line[line]
            if found.setdefault(image, other) != other:
                raise UserError(f"data set {name}: {image} is listed in both {lists[found[image]]} and {file}")
            if other == split:
                chosen.add(image)
    return chosen


def choose_by_hash(fractions: Mapping[str, float], seed: int, split: str, names: Iterable[str]) -> set[str]:
    """The images whose place in [0, 1) falls into a split's share.

    An image's place is the first 64 bits of SHA-256 of "seed/stem", over 2^64. Test takes the places below its
    fraction, val the next, train the rest: so an image stays in its split whatever other images come or go.

    Args:
        fractions: split -> share of val and of test.
        seed: another one is another split.
        split: the one that is wanted.
        names: file names of all images.
    """
    test = fractions.get("test", 0.0)
    val = test + fractions.get("val", 0.0)
    start, end = {"test": (0.0, test), "val": (test, val), "train": (val, 1.0)}[split]
    return {name for name in names if start <= _place(seed, key_of(name)) < end}


def choose(name: str, rule: Mapping[str, Any], split: str, names: Iterable[str]) -> set[str]:
    """The images of one split by whichever rule is given, never none.

    Args:
        name: of the data set, for errors.
        rule: split -> list; or fractions of val and test, and a seed; or empty for all images.
        split: the one that is wanted.
        names: file names of all images.

    Raises:
        UserError: see :func:`choose_listed`; or no image is chosen.
    """
    known = list(names)
    fractions = {key: value for key, value in rule.items() if isinstance(value, float)}
    if fractions:
        chosen = choose_by_hash(fractions, rule.get("seed", 0), split, known)
        if not chosen:
            raise UserError(
                f"data set {name}: seed {rule.get('seed', 0)} leaves none of {len(known)} images to {split};"
                " take another seed, or list files"
            )
        return chosen
    return choose_listed(name, rule, split, known) if rule else choose_all(known)


def _place(seed: int, key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def _lines(name: str, file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data set {name}: {file}: not a list of images: {error}") from error
