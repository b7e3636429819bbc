"""The history: the revisions of a project as a graph, read from their files.

Reading them doesn't import Alembic, which would cost more than all the rest of `db.status`. Projects whose
files can't be read that way (computed ids, several folders) are read through Alembic instead.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rag_factory.errors import HistoryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rag_factory.migrate.project import Project

_FIELDS = ("revision", "down_revision", "branch_labels", "depends_on")

# @, + and - have a meaning where a revision is named; the others end or bend a literal of SQL.
_NOT_IN_AN_ID = re.compile(r"['\\@+\-\x00-\x1f]")


@dataclass(frozen=True)
class Revision:
    """One revision file. message: the first line of its docstring."""

    id: str
    parents: tuple[str, ...]
    depends_on: tuple[str, ...]
    labels: tuple[str, ...]
    message: str
    path: Path


class History:
    """All revisions, by id, in an order in which each comes after what it needs."""

    def __init__(self, revisions: Iterable[Revision]) -> None:
        by_id: dict[str, Revision] = {}
        for revision in sorted(revisions, key=lambda revision: revision.path):
            if revision.id in by_id:
                raise HistoryError(
                    f"Two files have the revision id {revision.id}: {by_id[revision.id].path.name} and "
                    f"{revision.path.name}.",
                    fix="Give one of them an id of its own; where ids are numbers: invoke db.rechain FILE",
                )
            if found := _NOT_IN_AN_ID.search(revision.id):
                raise HistoryError(
                    f"{revision.path.name} has the revision id {revision.id!r}, and no id may have "
                    f"{found[0]!r}: Alembic writes it into its SQL as it stands.",
                    fix="Give it another one, of letters, digits and underscores.",
                )
            by_id[revision.id] = revision
        self.labels = {label: revision.id for revision in by_id.values() for label in revision.labels}
        self.revisions = self._sort(by_id)

    @classmethod
    def read(cls, project: Project) -> History:
        """Read the project's revisions.

        Raises HistoryError: a file is no valid Python, two share an id, or a parent is missing.
        """
        return cls(read_revisions(project))

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """The revisions that no other one follows."""
        followed = {parent for revision in self.revisions.values() for parent in revision.parents}
        return tuple(id_ for id_ in self.revisions if id_ not in followed)

    @property
    def head(self) -> str | None:
        """The one head; None when there is no revision yet.

        Raises HistoryError: there are several.
        """
        if len(self.heads) > 1:
            raise HistoryError(
                f"The history has {len(self.heads)} heads: {', '.join(self.heads)}.",
                fix="Merge them: invoke db.merge",
            )
        return self.heads[0] if self.heads else None

    def resolve(self, text: str) -> str | None:
        """The id meant by an id, the unique beginning of one, a label, `head` or `base`; None for `base`.

        Raises UsageError: there is no such revision, or several.
        """
        if text == "base":
            return None
        if text in {"head", "heads"}:
            return self.head
        name = self.labels.get(text, text)
        if name in self.revisions:
            return name
        matches = [id_ for id_ in self.revisions if text and id_.startswith(text)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(
                f"Revision {text} could be {', '.join(matches)}.", fix="Write more of the one you mean."
            )
        raise UsageError(
            f"There is no revision {text!r} in this checkout.", fix="See what there is: invoke db.history"
        )

    def lineage(self, ids: Iterable[str]) -> set[str]:
        """These revisions and all that they stand on."""
        seen: set[str] = set()
        todo = list(ids)
        while todo:
            id_ = todo.pop()
            if id_ not in seen:
                seen.add(id_)
                todo += self._needs(self.revisions[id_])
        return seen

    def check_known(self, current: Sequence[str], *, where: str) -> None:
        """Hold the database's revisions against the files.

        Raises HistoryError: the database is at a revision this checkout lacks.
        """
        unknown = [id_ for id_ in current if id_ not in self.revisions]
        if unknown:
            known = ", ".join(self.heads) or "none at all"
            raise HistoryError(
                f"{where} is at {', '.join(unknown)}, which this checkout lacks: its newest is {known}.",
                fix="Check out the branch that has it (git pull?), or, if its schema is at a revision you "
                "know, say so: invoke db.stamp REVISION --purge",
            )

    def pending(self, current: Sequence[str], target: str | None) -> list[Revision]:
        """What an upgrade from `current` to `target` applies, in order."""
        if target is None:
            return []
        wanted = self.lineage([target]) - self.lineage(current)
        return [revision for id_, revision in self.revisions.items() if id_ in wanted]

    def undone(self, current: Sequence[str], target: str | None) -> list[Revision]:
        """What a downgrade from `current` to `target` takes back, newest first.

        Raises UsageError: the database doesn't stand on the target.
        """
        applied = self.newest(current)
        if target is None:
            return applied
        if target not in {revision.id for revision in applied}:
            raise UsageError(
                f"The database is not at or past {target}: it is at {', '.join(current) or 'base'}.",
                fix=f"To go forward: invoke db.migrate --to {target}",
            )
        gone = self._descendants(target)
        return [revision for revision in applied if revision.id in gone]

    def newest(self, current: Sequence[str]) -> list[Revision]:
        """What is applied in a database at `current`, newest first: none comes before one it stands on."""
        applied = self.lineage(current)
        return [revision for id_, revision in reversed(self.revisions.items()) if id_ in applied]

    def _descendants(self, id_: str) -> set[str]:
        """All revisions that stand on this one, without itself."""
        found = {id_}
        for revision in self.revisions.values():
            if found.intersection(self._needs(revision)):
                found.add(revision.id)
        return found - {id_}

    def _needs(self, revision: Revision) -> list[str]:
        dependencies = [self.labels.get(name, name) for name in revision.depends_on]
        return [*revision.parents, *dependencies]

    def _sort(self, by_id: dict[str, Revision]) -> dict[str, Revision]:
        """Order the revisions so that each follows what it needs."""
        ordered: dict[str, Revision] = {}
        started: set[str] = set()
        todo = list(reversed(by_id))
        while todo:
            id_ = todo[-1]
            if id_ in ordered:
                todo.pop()
                continue
            revision = by_id[id_]
            missing = [need for need in self._needs(revision) if need not in ordered]
            for need in missing:
                if need not in by_id:
                    raise HistoryError(
                        f"{revision.path.name} follows {need}, which this checkout lacks.",
                        fix="Bring the file back, or correct down_revision.",
                    )
                if need in started:
                    raise HistoryError(
                        f"The history runs in a circle through {need} and {id_}.",
                        fix="Correct down_revision.",
                    )
            if missing:
                started.add(id_)
                todo += missing
            else:
                ordered[todo.pop()] = revision
        return ordered


def read_revisions(project: Project) -> list[Revision]:
    """Read the project's revision files, in no order, whether they make a history or not."""
    folder = project.versions_folder
    if folder is not None and folder.is_dir():
        # As Alembic does: an editor's lock files are no revisions.
        files = (path for path in folder.glob("*.py") if not path.name.startswith((".#", "__init__")))
        read = [_read_file(path) for path in files]
        if None not in read:
            return [revision for revision in read if revision is not None]
    return _read_through_alembic(project)


def _read_file(path: Path) -> Revision | None:
    """Read one file without running it; None when that doesn't tell its id, or a value is computed."""
    try:
        tree = ast.parse(path.read_bytes(), filename=path.name)
    except (SyntaxError, ValueError, OSError) as error:
        raise HistoryError(f"{path} can't be read: {error}.", fix="Correct the file.") from error
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id in _FIELDS:
            try:
                values[target.id] = ast.literal_eval(value)
            except ValueError:
                return None
    if not values.get("revision"):
        return None
    message = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Revision(
        id=str(values["revision"]),
        parents=_tuple(values.get("down_revision")),
        depends_on=_tuple(values.get("depends_on")),
        labels=_tuple(values.get("branch_labels")),
        message=message,
        path=path,
    )


def _read_through_alembic(project: Project) -> list[Revision]:
    import warnings
    from pathlib import Path

    from rag_factory.migrate.environment import load_scripts

    with warnings.catch_warnings():
        # Alembic would go on with one of the two.
        warnings.filterwarnings("error", message="Revision .* is present more than once")
        scripts = load_scripts(project.alembic_config(None)).walk_revisions()
    return [
        Revision(
            id=script.revision,
            parents=_tuple(script.down_revision),
            depends_on=_tuple(script.dependencies),
            labels=_tuple(getattr(script.module, "branch_labels", None)),
            message=(script.doc or "").partition("\n")[0],
            path=Path(script.path),
        )
        for script in scripts
    ]


def _tuple(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
