"""What a task prints: data to stdout, prose to stderr."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rag_factory.migrate.progress import Progress


def say(text: str) -> None:
    """Tell the user something; one line per effect."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def show(text: str) -> None:
    """Give the data that the task was asked for."""
    print(text, flush=True)  # noqa: T201


def show_json(data: Any) -> None:
    """Give the data for a machine."""
    show(json.dumps(data, indent=2, ensure_ascii=False))


def show_columns(rows: Iterable[Sequence[str]]) -> None:
    """Give rows of text in aligned columns."""
    table = [tuple(row) for row in rows]
    if not table:
        return
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        show("  ".join(cells).rstrip())


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of long work is done, on a terminal; gives what is to be told the number done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


class ProgressLine:
    """How far the current work is, in a line of its own that goes when the work is done."""

    def __init__(self) -> None:
        self._live: Any = None

    @classmethod
    def on_terminal(cls) -> ProgressLine | None:
        """One where there is a terminal; elsewhere None."""
        return cls() if sys.stderr.isatty() else None

    def __call__(self, progress: Progress) -> None:
        """Show it. The work is done when as much is done as there is."""
        if progress.total is not None and progress.done >= progress.total:
            self._stop()
            return
        if self._live is None:
            import atexit

            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self._live = Bars(*columns, console=Console(stderr=True), transient=True)
            self._live.start()
            self._live.add_task("")
            # Work that fails is never done: the line goes, and the cursor comes back, with the process.
            atexit.register(self._stop)
        text = progress.what
        if progress.rows_per_second:
            text += f"  {progress.rows_per_second:,.0f} rows/s"
        if progress.eta_seconds is not None:
            text += f"  {progress.eta_seconds:,.0f} s to go"
        self._live.update(0, description=text, completed=progress.done, total=progress.total)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def asker() -> Callable[[str], str] | None:
    """The way to ask the user; None where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> str:
        print(question, end="", file=sys.stderr, flush=True)  # noqa: T201
        return sys.stdin.readline()

    return ask


def human_size(size_bytes: int) -> str:
    """A size as people read it: 7.4 MB."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1024:  # noqa: PLR2004 - PostgreSQL's own kB
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"
