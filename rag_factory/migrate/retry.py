"""How long to go on trying for a lock, and how long to rest between two tries."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


def pause_seconds(tries: int, first: float, longest: float) -> float:
    """A pause before the next try, after so many: exponential, half of it by chance.

    Those that met come apart that way, and each leaves the others time to get through: AWS Architecture Blog,
    "Exponential Backoff And Jitter".
    """
    return random.uniform(0.5, 1) * min(longest, first * 2.0 ** min(tries, 30))  # noqa: S311 - no secret


class Patience:
    """Counts the tries of one piece of work that a lock stands in the way of.

    tries: at most so many. seconds: until so much time is over. Without both it has no end.
    The pauses grow from `first_pause_seconds` to `longest_pause_seconds`.
    """

    def __init__(
        self,
        *,
        tries: int | None = None,
        seconds: float | None = None,
        first_pause_seconds: float | None = None,
        longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
    ) -> None:
        self.failed = 0
        self._tries = tries
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._first = FIRST_PAUSE_SECONDS if first_pause_seconds is None else first_pause_seconds
        self._longest = longest_pause_seconds

    def is_over(self) -> bool:
        """Count a try that failed; whether it was the last."""
        self.failed += 1
        out_of_time = self._deadline is not None and time.monotonic() >= self._deadline
        return out_of_time or (self._tries is not None and self.failed >= self._tries)

    def rest(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Sleep until the next try. tell: told first when that is, `trying again in 0.8 s (1 of 5)`."""
        pause = pause_seconds(self.failed - 1, self._first, self._longest)
        if self._deadline is not None:
            pause = min(pause, max(0.0, self._deadline - time.monotonic()))
        count = f" ({self.failed} of {self._tries - 1})" if self._tries is not None else ""
        tell(f"trying again in {pause:.1f} s{count}")
        time.sleep(pause)
