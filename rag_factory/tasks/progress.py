"""Tell how far a migration is, while it runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rag_factory.tasks.output import say

if TYPE_CHECKING:
    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.progress import Progress
    from rag_factory.migrate.steps import Applied, Direction

_ARROWS = {"up": "+", "down": "-"}
_QUIET_SECONDS = 1.0
_BAR_WIDTH = 20
_CLEAR_LINE = "\r\x1b[K"


class Narrator:
    """Tells each revision that is done; one that takes long, also before.

    On a terminal that is a line with its seconds, written anew, and with a bar where it is known how far the
    work is; elsewhere one line after the first second. It is told from several threads.
    """

    def __init__(self) -> None:
        self._shown: str | None = None
        self._progress: Progress | None = None
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
        self._progress = None
        self.say(
            f"{_ARROWS[applied.direction]} {revision.id} {revision.message}  {applied.milliseconds:.0f} ms"
        )

    def running(self, revision: Revision, direction: Direction, seconds: float) -> None:
        """A revision is at work."""
        if seconds < _QUIET_SECONDS:
            return
        line = f"{_ARROWS[direction]} {revision.id} {revision.message}"
        if self._live:
            far = f"  {_draw(self._progress)}" if self._progress else ""
            self._shown = f"{line}  {seconds:.0f} s …{far}"
            print(f"{_CLEAR_LINE}{self._shown}", end="", file=sys.stderr, flush=True)  # noqa: T201 - likewise
        elif self._shown != line:
            self._shown = line
            say(f"{'applying' if direction == 'up' else 'taking back'} {revision.id} {revision.message} …")

    def progress(self, progress: Progress) -> None:
        """A part of a revision is so far; shown with the seconds."""
        done = progress.total is not None and progress.done >= progress.total
        self._progress = None if done else progress


def _draw(progress: Progress) -> str:
    """A bar, and what else is known: `backfilling items ████░░░░░░ 40 %, 52,000 rows/s, 3 s to go`."""
    parts = []
    if progress.total:
        share = progress.done / progress.total
        full = round(share * _BAR_WIDTH)
        parts.append(f"{'█' * full}{'░' * (_BAR_WIDTH - full)} {share:.0%}".replace("%", " %"))
    if progress.rows_per_second:
        parts.append(f"{progress.rows_per_second:,.0f} rows/s")
    if progress.eta_seconds is not None:
        parts.append(f"{progress.eta_seconds:,.0f} s to go")
    return f"{progress.what} {', '.join(parts)}"
