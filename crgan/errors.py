"""Raised for invalid input; commands print the message and exit with code 2."""

from collections.abc import Iterable


class InputError(ValueError):
    """Names the value, what was expected and the way out, in one sentence."""


class NotFiniteError(InputError):
    """Codes that are not finite: no metric is defined on them."""


def suggestion(name: str, options: Iterable[str]) -> str:
    """Return '; did you mean ...?' for the option closest to `name`, or nothing if none is close."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(options), 1)
    return f"; did you mean {close[0]}?" if close else ""
