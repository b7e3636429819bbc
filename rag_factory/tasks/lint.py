"""`db.lint`: what is dangerous in a revision, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_factory.errors import RagFactoryError, UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import say, show, show_json
from rag_factory.tasks.texts import JSON

if TYPE_CHECKING:
    from rag_factory.tasks.workspace import Workspace


@command(
    "lint",
    since="Only revisions added or changed since this git commit.",
    json=JSON,
    github="Print annotations of GitHub Actions.",
    sarif="Also write the findings to this file, as SARIF.",
)
def lint(
    work: Workspace,
    since: str | None = None,
    json: bool = False,
    github: bool = False,
    sarif: str | None = None,
) -> None:
    """Find what is dangerous in revisions; needs no database."""
    from rag_factory.migrate.lint import lint as run_lint
    from rag_factory.migrate.lint import output

    if json and github:
        raise UsageError("--json and --github exclude each other.", fix="Give one of them.")
    report = run_lint(work.project, since)
    if sarif is not None:
        import json as json_format
        from pathlib import Path

        Path(sarif).write_text(json_format.dumps(output.as_sarif(report.findings), indent=2) + "\n")
        say(f"wrote {sarif}")
    if json:
        show_json(output.as_data(report.findings))
    elif report.findings:
        show((output.as_annotations if github else output.as_text)(report.findings))
    if report.findings:
        raise RagFactoryError(
            f"{_count(len(report.findings), 'finding')} in {_count(report.revisions, 'revision')}.",
            fix="Change them as advised; what is right as it is: # lint: ignore RULE: reason",
        )
    say(f"nothing found in {_count(report.revisions, 'revision')}")


TASKS = (lint,)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
