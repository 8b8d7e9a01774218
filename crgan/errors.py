"""Errors for invalid input; commands print the message and exit with code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Raised for invalid input: one sentence with the value, what was expected and the way out."""


class NotFiniteError(InputError):
    """Raised for codes that are not finite, on which no metric is defined."""


def check_name(what: str, name: str, names: Iterable[str]) -> None:
    """Raise InputError, with a suggestion, unless `name` is one of `names`."""
    names = list(names)
    if name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"there is no {what} {name!r}; {hint}expected one of {', '.join(names)}")
