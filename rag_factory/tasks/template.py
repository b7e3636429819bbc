"""`template.*`: what is done once, in a checkout of the template itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_factory.tasks.command import command
from rag_factory.tasks.output import say, show

if TYPE_CHECKING:
    from rag_factory.tasks.workspace import Workspace


@command(
    "init",
    name="What the project is called, like my-app; its package is my_app.",
    without="Subjects to leave out: chat,tenancy,audit, or some of them.",
    dry_run="Print what would be done, and do nothing.",
)
def init(work: Workspace, name: str, without: str | None = None, dry_run: bool = False) -> None:
    """Make this checkout a project of your own."""
    from rag_factory.template.creation import NEXT_STEPS, SIGNS, make_plan, rewrite_checkout

    plan = make_plan(name, without)
    rewrite_checkout(
        plan,
        work.root,
        dry_run=dry_run,
        on_change=lambda change: show(f"{SIGNS[change.kind]} {change.path}"),
    )
    if dry_run:
        say("Nothing was changed.")
    else:
        steps = "\n  ".join(("git add --all && git commit -m 'Begin'", *NEXT_STEPS))
        say(f"This is {plan.name} now. To take it back: git checkout . && git clean -df. Next:\n  {steps}")


TASKS = (init,)
