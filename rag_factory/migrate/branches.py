"""Two branches that each add a revision: let them collide in git, and put one after the other.

A file HEAD beside the revisions holds the id of the newest. Two branches that each add one change the same
line, so git stops at it, long before a deployment would. A project without the file does without.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rag_factory.errors import RefusedError, UsageError
from rag_factory.migrate.history import History, Revision, read_revisions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rag_factory.migrate.project import Project

NAME = "HEAD"


@dataclass(frozen=True)
class Moved:
    """A revision that was put elsewhere. before: as it was."""

    before: Revision
    after: Revision


def head_file(project: Project) -> Path:
    """The file with the id of the newest revision, whether it is there or not."""
    return project.script_folders[0] / NAME


def note_head(project: Project, revision: str) -> None:
    """Write the newest revision's id into the file, where the project has one."""
    path = head_file(project)
    if path.is_file():
        path.write_text(f"{revision}\n", encoding="utf-8")


def rechain(project: Project, which: str, onto: str | None, applied: Sequence[str]) -> list[Moved]:
    """Put the branch that a revision is on after another revision, in the files. Returns what was changed.

    which: an id or a file name. onto: likewise; None: the other head. applied: what the known database's
    version table holds. A branch of numbered revisions gets the numbers that come next; other ids stay.
    Raises UsageError: it is no branch of one revision after the other, or not beside `onto`.
    Raises RefusedError: the database has a revision of it applied.
    """
    revisions = read_revisions(project)
    moving = _find(revisions, which)
    goal = _other_head(revisions, moving) if onto is None else _find(revisions, onto)
    below = _lineage(revisions, [goal])
    branch = _branch(revisions, moving, goal, below)
    _refuse_applied(revisions, branch, applied)
    moved = _renumber(branch, goal)
    places = {step.before.path for step in moved}
    for step in moved:
        if step.after.path not in places and step.after.path.exists():
            raise UsageError(f"{step.after.path.name} is there already.", fix="Give that file another name.")
    # The last one first: it leaves the name that the one before it may get.
    for step in reversed(moved):
        _rewrite(step)
    note_head(project, (moved[-1].after if moved else goal).id)
    return [step for step in moved if step.before != step.after]


def _find(revisions: Iterable[Revision], text: str) -> Revision:
    found = [each for each in revisions if text in {each.id, each.path.name, each.path.stem}]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(sorted(each.path.name for each in found))
        raise UsageError(f"{names} both have the id {text}.", fix="Name the file you mean.")
    raise UsageError(f"There is no revision {text!r} in this checkout.", fix="See: invoke db.history")


def _other_head(revisions: Sequence[Revision], moving: Revision) -> Revision:
    followed = {parent for each in revisions for parent in each.parents}
    mine = _descendants(revisions, moving)
    heads = [each for each in revisions if each.id not in followed and each not in mine]
    if len(heads) == 1:
        return heads[0]
    names = ", ".join(sorted(each.id for each in heads)) or "none"
    raise UsageError(f"Which head {moving.id} is to follow isn't clear: there is {names}.", fix="--onto HEAD")


def _descendants(revisions: Sequence[Revision], start: Revision) -> list[Revision]:
    """The revision and all that follow it, in order. Which of two with one id is followed, nobody knows."""
    found = [start]
    twins = sum(each.id == start.id for each in revisions) > 1
    for revision in found:
        followers = [each for each in revisions if revision.id in each.parents and each not in found]
        if followers and twins:
            raise UsageError(
                f"{followers[0].path.name} follows {start.id}, and two files have that id.",
                fix="Give one of them another id by hand, in the file that follows it too.",
            )
        found += followers
    return found


def _lineage(revisions: Sequence[Revision], start: Iterable[Revision]) -> list[Revision]:
    """These and all that they stand on."""
    found = list(start)
    for revision in found:
        found += [each for each in revisions if each.id in revision.parents and each not in found]
    return found


def _branch(
    revisions: Sequence[Revision], moving: Revision, goal: Revision, below: Sequence[Revision]
) -> list[Revision]:
    """The revisions to move, the first one first."""
    if moving in below:
        raise UsageError(
            f"{goal.id} stands on {moving.id} already.", fix="Name the revision that is to come after it."
        )
    branch = [each for each in reversed(_lineage(revisions, [moving])) if each not in below]
    branch += _descendants(revisions, moving)[1:]
    for place, revision in enumerate(branch):
        expected = branch[place - 1].id if place else None
        alone = len(revision.parents) <= 1 and (expected is None or revision.parents == (expected,))
        if not alone:
            raise UsageError(
                f"{revision.path.name} joins branches, or is one of several that follow {expected}.",
                fix="Join the heads instead: invoke db.merge",
            )
    return branch


def _refuse_applied(
    revisions: Sequence[Revision], branch: Sequence[Revision], applied: Sequence[str]
) -> None:
    there = {each.id for each in _lineage(revisions, [each for each in revisions if each.id in applied])}
    known = [each.id for each in branch if each.id in there]
    if known:
        parent = branch[0].parents[0] if branch[0].parents else "base"
        raise RefusedError(
            f"{', '.join(known)} {'is' if len(known) == 1 else 'are'} applied in the database, which would "
            "no longer know what it has. Nothing was changed.",
            fix=f"Take it back first (invoke db.rollback --to {parent}), or move the other branch.",
        )


def _renumber(branch: Sequence[Revision], goal: Revision) -> list[Moved]:
    """Each revision of the branch as it is to be; where all have numbers, with those that come next."""
    numbered = all(re.fullmatch(r"\d{1,8}", each.id) for each in (goal, *branch))
    moved: list[Moved] = []
    parent, highest = goal.id, int(goal.id) if numbered else 0
    for revision in branch:
        id_, path = revision.id, revision.path
        if numbered:
            highest = max(highest + 1, int(id_))
            id_ = str(highest).zfill(len(goal.id))
            if path.name.startswith(revision.id):
                path = path.with_name(id_ + path.name.removeprefix(revision.id))
        moved.append(Moved(revision, replace(revision, id=id_, parents=(parent,), path=path)))
        parent = id_
    return moved


def _rewrite(step: Moved) -> None:
    """Write the revision's id and parent into its file, and name the file for it."""
    before, after = step.before, step.after
    if before == after:
        return
    source = before.path.read_bytes()
    lines = source.splitlines(keepends=True)
    values = {"revision": after.id, "down_revision": after.parents[0]}
    for name, node in sorted(_values(source).items(), key=lambda found: -found[1].lineno):
        last = node.end_lineno or node.lineno
        line = lines[node.lineno - 1]
        rest = lines[last - 1][node.end_col_offset :]
        lines[node.lineno - 1 : last] = [line[: node.col_offset] + f'"{values[name]}"'.encode() + rest]
    text = b"".join(lines)
    for label, value in (("Revision ID", after.id), ("Revises", after.parents[0])):
        text = re.sub(
            rf"^{label}:[^\r\n]*".encode(), f"{label}: {value}".encode(), text, count=1, flags=re.MULTILINE
        )
    before.path.write_bytes(text)
    before.path.rename(after.path)


def _values(source: bytes) -> dict[str, ast.expr]:
    """What `revision` and `down_revision` are set to."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id in {"revision", "down_revision"} and value is not None:
            found[target.id] = value
    return found


def check_head(project: Project, history: History) -> list[str]:
    """What is wrong with the head of the history, or with the file that holds it; empty for nothing."""
    if len(history.heads) > 1:
        return [f"The history has {len(history.heads)} heads: {', '.join(history.heads)}."]
    path = head_file(project)
    if not path.is_file():
        return []
    written = path.read_text(encoding="utf-8").strip()
    head = history.head or ""
    return (
        []
        if written == head
        else [f"It says {written.splitlines()[:1]}, and the newest revision is {head!r}."]
    )
