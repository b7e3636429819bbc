"""A plan as text, as tables on a terminal, and as Markdown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rag_factory.tasks.output import show, show_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rag_factory.migrate.plan.model import Plan, PlannedRevision, PlannedStatement

HEADER = ("#", "verdict", "time", "locks", "statement")
STATEMENT_WIDTH = 72
MOST_NAMES = 3
_COLOURS = {
    "online": "green", "short lock": "green", "blocks writes": "yellow", "blocks everything": "red",
    "rewrites": "red",
}  # fmt: skip


def show_plan(plan: Plan) -> None:
    """Give the plan to people: tables on a terminal, aligned text elsewhere."""
    show(_title(plan))
    for revision in plan.revisions:
        show(f"\n{_heading(revision)}")
        rows = _rows(revision)
        if rows and sys.stdout.isatty():
            _show_table(revision, rows)
        else:
            show_columns([("", *row) for row in rows])
        for line in _facts(revision):
            show(f"  {line}")
        for number, statement in enumerate(revision.statements, 1):
            for advice in statement.advice:
                said, *code = advice.splitlines()
                show(f"\n  #{number} {said}")
                for line in code:
                    show(f"      {line}".rstrip())
    for left in plan.not_planned:
        show(f"\n{left.id} {left.message}: not planned, since the one before it fails")


def as_markdown(plan: Plan) -> str:
    """The plan for a pull request."""
    lines = [f"### {_title(plan)}"]
    for revision in plan.revisions:
        lines += ["", f"#### {_heading(revision)}", ""]
        if rows := _rows(revision):
            lines += [f"| {' | '.join(HEADER)} |", "| ---: | --- | ---: | --- | --- |"]
            for row in rows:
                *cells, sql = (cell.replace("|", "\\|") for cell in row)
                lines.append(f"| {' | '.join(cells)} | `{sql.replace('`', ' ')}` |")
            lines.append("")
        lines += [f"- {line}" for line in _facts(revision)]
        for number, statement in enumerate(revision.statements, 1):
            for advice in statement.advice:
                said, _, code = advice.partition("\n")
                lines += ["", f"**#{number}** {said}"] + (
                    ["", "```python", *code.splitlines(), "```"] if code else []
                )
    lines += [
        line
        for left in plan.not_planned
        for line in ("", f"#### {left.id} {left.message}: not planned, since the one before it fails")
    ]
    return "\n".join(lines)


def _title(plan: Plan) -> str:
    count = len(plan.revisions) + len(plan.not_planned)
    what = f"{count} revision{'s' if count > 1 else ''} to {plan.to}"
    verdict = "fails" if plan.error else plan.verdict
    return f"{plan.database} at {', '.join(plan.at) or 'base'}, {what}: {verdict}"


def _heading(revision: PlannedRevision) -> str:
    verdict = "fails" if revision.error else revision.verdict
    return f"{revision.revision.id} {revision.revision.message}: {verdict}"


def _rows(revision: PlannedRevision) -> list[tuple[str, ...]]:
    """What does something; online operations look a lot before they do."""
    numbered = enumerate(revision.statements, 1)
    return [(str(number), *_row(each)) for number, each in numbered if not each.only_looks]


def _row(statement: PlannedStatement) -> tuple[str, str, str, str]:
    from rag_factory.migrate.plan.statements import one_line
    from rag_factory.migrate.plan.verdict import MODES

    locks: dict[str, list[str]] = {}
    named: set[str] = set()
    for lock in statement.locks:
        # The strongest one of a relation comes first, and stands for the others.
        if lock.relation not in named:
            locks.setdefault(MODES[lock.mode], []).append(lock.relation)
        named.add(lock.relation)
    told = "; ".join(f"{mode} on {_some(relations)}" for mode, relations in locks.items())
    sql = one_line(statement.sql, STATEMENT_WIDTH)
    return str(statement.verdict), f"{statement.milliseconds:.1f} ms", told or "-", sql


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are: a table may have any number of indexes."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _facts(revision: PlannedRevision) -> Iterator[str]:
    """All that a revision's table has no column for."""
    for number, statement in enumerate(revision.statements, 1):
        if done := "; ".join(_done(statement)):
            yield f"#{number} {done}"
    if looks := sum(statement.only_looks for statement in revision.statements):
        yield f"{looks} more statement{'s' if looks > 1 else ''} only look, and lock nothing"
    if not revision.transactional:
        yield "not in one transaction: if it fails midway, what came before stays"
    if revision.drops:
        yield f"data lost: it drops {', '.join(revision.drops)}"
    match revision.reversible:
        case True:
            yield "reversible: taken back on the copy, the schema was as before"
        case False:
            yield f"not reversible: {revision.irreversible_because}"
        case None if revision.error is None:
            yield "the way back was not tried: a later downgrade failed"
    if revision.loses:
        yield f"data lost on the way down: {', '.join(revision.loses)}"
    if revision.error is not None:
        yield f"fails on the copy: {revision.error}"


def _done(statement: PlannedStatement) -> Iterator[str]:
    for what, names in (
        ("rewrites", statement.rewrites),
        ("reads from end to end", statement.scans),
        ("builds", statement.builds),
    ):
        if names:
            yield f"{what} {_some(names)}"
    yield from (str(each) for each in statement.writes)
    yield from statement.notes


def _show_table(revision: PlannedRevision, rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*HEADER)
    shown = [statement for statement in revision.statements if not statement.only_looks]
    for statement, row in zip(shown, rows, strict=True):
        number, verdict, *rest = (escape(cell) for cell in row)
        table.add_row(number, f"[{_COLOURS[statement.verdict.level]}]{verdict}[/]", *rest)
    Console().print(table)
