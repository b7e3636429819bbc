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
LOCK_TIMEOUT = "Seconds a statement may wait for a lock (DB_LOCK_TIMEOUT_SECONDS)."
STATEMENT_TIMEOUT = "Seconds a statement may run, 0: for ever (DB_STATEMENT_TIMEOUT_SECONDS)."
RETRIES = "How often to try again after a lock (DB_LOCK_RETRIES)."
# The longest time that PostgreSQL's own settings in milliseconds can hold, 24 days.
LONGEST_SECONDS = 2_147_483
SQL = "Print the SQL instead of running it."


def whole_number(text: str, option: str, *, at_least: int = 1) -> int:
    """Read a number of things. invoke itself would answer "x" with a traceback."""
    if text.isdecimal() and int(text) >= at_least:
        return int(text)
    raise UsageError(f"{option} is {text}, and must be a whole number, {at_least} or more.")


def seconds(text: str, option: str, *, at_least: float = 0) -> float:
    """Read a number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if at_least <= number <= LONGEST_SECONDS:
        return number
    raise UsageError(f"{option} is {text}, and must be a number of seconds, {at_least:g} or more.")
