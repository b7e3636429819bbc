"""What `invoke` alone shows: the tasks by area, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_factory.tasks.command import Command, command
from rag_factory.tasks.output import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.tasks.workspace import Workspace


def make_task(groups: Sequence[tuple[str, str, Sequence[Command]]]) -> Command:
    """Make the task that shows these groups: each an area, what it is about, and its tasks."""

    @command("tasks")
    def tasks(_: Workspace) -> None:
        """Show the tasks by area; the same as invoke alone."""
        names = [f"{area}.{task.name}" for area, _, tasks in groups for task in tasks]
        width = max(len(name) for name in names)
        for area, about, tasks in groups:
            show(f"{about[0].upper()}{about[1:]}")
            for task in sorted(tasks, key=lambda task: task.name):
                first_line = (task.__doc__ or "").strip().partition("\n")[0]
                show(f"  {f'{area}.{task.name}'.ljust(width)}  {first_line}")
            show("")
        show("One of them: invoke --help db.migrate")

    return tasks
