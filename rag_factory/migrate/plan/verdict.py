"""What a lock means to the application, and how bad a statement is in one word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Level = Literal["online", "short lock", "blocks writes", "blocks everything", "rewrites"]
LEVELS: tuple[Level, ...] = ("online", "short lock", "blocks writes", "blocks everything", "rewrites")
# A lock held no longer than this is short: what waits behind it is late, and nobody calls it an outage. On an
# empty or a tiny table, up to some hundred thousand narrow rows, everything is that short.
DEFAULT_SHORT_SECONDS = 1.0
# pg_locks' name of a mode, as SQL writes it; and what waits for it, beside other changes of the schema.
MODES = {
    "AccessShareLock": "ACCESS SHARE",
    "RowShareLock": "ROW SHARE",
    "RowExclusiveLock": "ROW EXCLUSIVE",
    "ShareUpdateExclusiveLock": "SHARE UPDATE EXCLUSIVE",
    "ShareLock": "SHARE",
    "ShareRowExclusiveLock": "SHARE ROW EXCLUSIVE",
    "ExclusiveLock": "EXCLUSIVE",
    "AccessExclusiveLock": "ACCESS EXCLUSIVE",
}
STRENGTH = {mode: number for number, mode in enumerate(MODES)}
_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def blocked_by(mode: str) -> Literal["nobody", "writes", "everything"]:
    """What of an application waits while a table is locked in this mode."""
    if mode == "AccessExclusiveLock":
        return "everything"
    return "writes" if mode in {"ShareLock", "ShareRowExclusiveLock", "ExclusiveLock"} else "nobody"


@dataclass(frozen=True)
class Verdict:
    """How bad it is. seconds: how long what is said lasts. size_bytes: what is rewritten."""

    level: Level
    seconds: float = 0.0
    size_bytes: int = 0

    @property
    def badness(self) -> tuple[int, float]:
        """To compare two by: the level first, then the time."""
        return LEVELS.index(self.level), self.seconds

    def __str__(self) -> str:
        text: str = f"rewrites {size_text(self.size_bytes)}" if self.level == "rewrites" else self.level
        if self.level == "short lock" or (self.level == "online" and self.seconds < 1):
            return text
        return f"{text}, {time_text(self.seconds)}"


def judge(
    modes: Iterable[str],
    own_seconds: float,
    held_seconds: float,
    rewritten_bytes: int,
    rows_seconds: float,
    short_seconds: float,
) -> Verdict:
    """Judge one statement.

    modes: of its locks on relations the live database has. own_seconds: how long it runs itself.
    held_seconds: from its begin to the end of its transaction. rewritten_bytes: what it makes anew.
    rows_seconds: how long it writes rows, which stay locked. short_seconds: what counts as short.
    """
    effects = {blocked_by(mode) for mode in modes}
    if effects & {"writes", "everything"} and held_seconds < short_seconds:
        return Verdict("short lock", held_seconds)
    if "everything" in effects and rewritten_bytes:
        return Verdict("rewrites", held_seconds, rewritten_bytes)
    if "everything" in effects:
        return Verdict("blocks everything", held_seconds)
    if "writes" in effects or rows_seconds >= short_seconds:
        return Verdict("blocks writes", held_seconds)
    return Verdict("online", own_seconds)


def time_text(seconds: float) -> str:
    """A time as an estimate is told."""
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds >= 1.5 * unit:
            return f"about {seconds / unit:.0f} {name}s"
    if seconds < 1:
        return "under a second"
    number = f"{seconds:.0f}"
    return f"about {number} second{'' if number == '1' else 's'}"


def size_text(size_bytes: int) -> str:
    """A size as an estimate is told, never as nothing."""
    if size_bytes >= 10**9:
        return f"{size_bytes / 10**9:.1f} GB"
    return f"{max(size_bytes / 10**6, 0.1):.1f} MB"
