"""Keyword arguments from a config, checked against the annotations of what they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from seg_ext.errors import UserError

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "None",
}


def check_types(where: str, function: Callable[..., Any], args: Mapping[str, Any]) -> None:
    """Refuse an argument of another type than ``function`` declares, such as the text "no", which would count as True.

    Raises:
        UserError: after ``where``, the argument and what it takes.
    """
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # names that foreign code imports for type checkers alone
        return
    for name, value in args.items():
        if name in hints and not _fits(value, hints[name]):
            raise UserError(f"{where}: {name} {value!r} takes {_said(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a yaml is one of this type; of types that no yaml has, any is."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is Sequence:
        return isinstance(value, (list, tuple)) and all(_fits(each, get_args(hint)[0]) for each in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or hint not in _WORDS or isinstance(value, hint)


def _said(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_said(each) for each in get_args(hint))
    if get_origin(hint) is Sequence:
        return f"a list of {_said(get_args(hint)[0]).removeprefix('a ')}s"
    return _WORDS.get(hint, str(hint))
