"""Tell how far a migration is, while it runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rag_factory.tasks.output import say

if TYPE_CHECKING:
    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.steps import Applied, Direction

_ARROWS = {"up": "+", "down": "-"}
_QUIET_SECONDS = 1.0
_CLEAR_LINE = "\r\x1b[K"


class Narrator:
    """Tells each revision that is done; one that takes long, also before.

    On a terminal that is a line with its seconds, written anew; elsewhere one line after the first second.
    """

    def __init__(self) -> None:
        self._shown: str | None = None
        self._live = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Tell something, in place of the line of seconds."""
        if self._live and self._shown is not None:
            print(_CLEAR_LINE, end="", file=sys.stderr)  # noqa: T201 - no line of its own
            self._shown = None
        say(text)

    def applied(self, applied: Applied) -> None:
        """A revision is done."""
        revision = applied.revision
        self.say(
            f"{_ARROWS[applied.direction]} {revision.id} {revision.message}  {applied.milliseconds:.0f} ms"
        )

    def running(self, revision: Revision, direction: Direction, seconds: float) -> None:
        """A revision is at work."""
        if seconds < _QUIET_SECONDS:
            return
        line = f"{_ARROWS[direction]} {revision.id} {revision.message}"
        if self._live:
            self._shown = f"{line}  {seconds:.0f} s …"
            print(f"{_CLEAR_LINE}{self._shown}", end="", file=sys.stderr, flush=True)  # noqa: T201 - likewise
        elif self._shown != line:
            self._shown = line
            say(f"{'applying' if direction == 'up' else 'taking back'} {revision.id} {revision.message} …")
