"""Static lint: what is dangerous in a revision, told before it runs. Needs no database."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.migrate.history import History
from rag_factory.migrate.lint.finding import Finding

if TYPE_CHECKING:
    from pathlib import Path

    from rag_factory.migrate.project import Project

__all__ = ["Finding", "Report", "lint"]


@dataclass(frozen=True)
class Report:
    """What was found, in the order of files and lines, and how many revisions were looked at."""

    findings: tuple[Finding, ...]
    revisions: int


def lint(project: Project, since: str | None = None) -> Report:
    """Look at the SQL and the code of each revision.

    since: a git commit; only revisions that were added or changed since it.
    Raises HistoryError: the revisions can't be read. Raises NotReadyError: squawk, or with `since` git, isn't
    there. Raises UsageError: `since` is no commit.
    """
    from rag_factory.migrate.branches import check_head, head_file
    from rag_factory.migrate.lint.changed import changed_files
    from rag_factory.migrate.lint.ignores import apply_ignores
    from rag_factory.migrate.lint.recording import record
    from rag_factory.migrate.lint.rules import Schema, check_revision
    from rag_factory.migrate.lint.squawk import check_revisions

    history = History.read(project)
    revisions = history.revisions.values()
    chosen = {revision.path for revision in revisions}
    if since is not None:
        changed = changed_files(project.root, sorted({path.parent for path in chosen}), since)
        chosen = {path for path in chosen if path.resolve() in changed}
    schema = Schema()
    found: dict[str, list[Finding]] = {}
    looked_at = {}
    # The others are recorded too: they say which columns are vectors.
    for recording in record(project, history) if chosen else []:
        path = _name(recording.revision.path, project.root)
        findings = check_revision(recording, path, schema)
        if recording.revision.path in chosen:
            found[path] = findings
            looked_at[path] = recording
    for finding in check_revisions(looked_at):
        # Of a vector we have said it already, and how to go about it.
        ours = any(
            one.rule == "vector-type-changed" and one.line == finding.line for one in found[finding.path]
        )
        if not (ours and finding.rule == "changing-column-type"):
            found[finding.path].append(finding)
    for path, recording in looked_at.items():
        source = recording.revision.path.read_text(encoding="utf-8")
        found[path] = apply_ignores(source, path, found[path])
    every = {
        Finding(
            _name(head_file(project), project.root),
            1,
            "one-head",
            message,
            "Put yours after the other (invoke db.rechain REVISION), or join them (invoke db.merge): both "
            "write the file. With one head, write its id into the file.",
        )
        for message in check_head(project, history)
    }
    every |= {finding for findings in found.values() for finding in findings}
    return Report(tuple(sorted(every)), len(looked_at))


def _name(path: Path, root: Path) -> str:
    """The path from the project's root, as git and its hosts write it."""
    return os.path.relpath(path, root).replace(os.sep, "/")
