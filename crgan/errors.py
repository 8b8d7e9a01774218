"""The one error type for what the user can mend."""


class InputError(ValueError):
    """Names the value, what was expected and the way out, in one sentence.

    Commands print it without a traceback and end with exit code 2.
    """


class NotFiniteError(InputError):
    """Codes that are not finite: no metric is defined on them."""
