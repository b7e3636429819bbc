"""Arguments that several tasks have: their help texts, and numbers read from their text."""

from __future__ import annotations

import math

from rag_factory.errors import UsageError

YES = "Do it without asking."
DATABASE = "The database's name; in a protected environment it must be typed out."
JSON = "Print JSON."
DEFAULT_WAIT_SECONDS = 60.0
DEFAULT_WAIT = f"{DEFAULT_WAIT_SECONDS:g}"
WAIT = f"Seconds to wait for another migrator ({DEFAULT_WAIT})."
SQL = "Print the SQL instead of running it."


def whole_number(text: str, option: str) -> int:
    """Read a number of things, 1 or more. invoke itself would answer "x" with a traceback."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"{option} is {text}, and must be a whole number, 1 or more.")


def seconds(text: str, option: str) -> float:
    """Read a number of seconds, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if number >= 0:
        return number
    raise UsageError(f"{option} is {text}, and must be a number of seconds, 0 or more.")
