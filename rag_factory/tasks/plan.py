"""`db.plan`: what the pending revisions would do to the database as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_factory.errors import RagFactoryError, RefusedError, UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.migration import name_revisions
from rag_factory.tasks.output import say, show, show_json
from rag_factory.tasks.plan_report import as_markdown, show_plan
from rag_factory.tasks.texts import JSON, seconds

if TYPE_CHECKING:
    from rag_factory.migrate.plan.model import Plan
    from rag_factory.migrate.plan.verdict import Level
    from rag_factory.tasks.workspace import Workspace


@command(
    "plan",
    to="The revision to plan up to (head).",
    json=JSON,
    markdown="Print Markdown, for a pull request.",
    short="Seconds that a lock may be held to count as short (1).",
    fail_on="End with 4 at this verdict or worse: short-lock, blocks-writes, blocks-everything, rewrites.",
)
def plan(
    work: Workspace,
    to: str = "head",
    json: bool = False,
    markdown: bool = False,
    short: str = "1",
    fail_on: str | None = None,
) -> None:
    """Tell what the pending revisions lock, rewrite and cost."""
    if json and markdown:
        raise UsageError("--json and --markdown exclude each other.", fix="Give one of them.")
    limit = None if fail_on is None else _level(fail_on)
    short_seconds = seconds(short, "--short")
    goal = work.history.resolve(to)
    work.read_known_state()
    from rag_factory.migrate.plan.planner import make_plan

    found = make_plan(work.target, work.project, work.history, goal, short_seconds)
    if json:
        show_json(found.as_data())
    elif not found.revisions:
        say(f"{work.target.place} is at {name_revisions(found.at, work.history)}; nothing to plan")
    elif markdown:
        show(as_markdown(found))
    else:
        show_plan(found)
    _judge(found, limit)


TASKS = (plan,)


def _judge(plan: Plan, limit: Level | None) -> None:
    """End the task with the code that the plan deserves."""
    from rag_factory.migrate.plan.verdict import LEVELS

    if plan.error is not None:
        raise RagFactoryError(
            f"Revision {plan.revisions[-1].revision.id} fails on a copy of the schema.",
            fix="Why is in the plan; correct it, then plan again.",
        )
    if limit is None:
        return
    bad = [each for each in plan.revisions if LEVELS.index(each.verdict.level) >= LEVELS.index(limit)]
    if bad:
        named = ", ".join(f"{each.revision.id} ({each.verdict})" for each in bad)
        raise RefusedError(
            f"--fail-on {limit.replace(' ', '-')}: {named}.", fix="The plan says how to do it without."
        )


def _level(text: str) -> Level:
    from rag_factory.migrate.plan.verdict import LEVELS

    for level in LEVELS:
        if text.replace("-", " ") == level:
            return level
    known = ", ".join(level.replace(" ", "-") for level in LEVELS)
    raise UsageError(f"--fail-on is {text}, and must be one of {known}.")
