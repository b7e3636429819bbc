"""The graph of revisions, read from files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import HistoryError, UsageError
from rag_factory.migrate.history import History, Revision
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from pathlib import Path


def _history(folder: Path, **parents: str) -> History:
    """Make a history of `id="parent parent"`; the files sort against the order on purpose."""
    return History(
        Revision(
            id=id_,
            parents=tuple(needs.split()),
            depends_on=(),
            labels=(),
            message=id_,
            path=folder / f"{len(parents) - at}_{id_}.py",
        )
        for at, (id_, needs) in enumerate(parents.items())
    )


@pytest.fixture
def forked(tmp_path: Path) -> History:
    """A, then B and C side by side, joined by D; E on top."""
    return _history(tmp_path, a="", b="a", c="a", d="b c", e="d")


def _ids(revisions: list[Revision]) -> str:
    return " ".join(revision.id for revision in revisions)


def test_revisions_come_after_what_they_need(forked: History) -> None:
    order = list(forked.revisions)
    for revision in forked.revisions.values():
        assert all(order.index(parent) < order.index(revision.id) for parent in revision.parents)
    assert forked.head == "e"


def test_pending_is_what_is_between(forked: History) -> None:
    assert set(_ids(forked.pending((), "d")).split()) == {"a", "b", "c", "d"}
    assert _ids(forked.pending(("b",), "d")) == "c d"
    assert _ids(forked.pending(("b", "c"), "e")) == "d e"
    assert forked.pending(("e",), "e") == forked.pending(("e",), "b") == forked.pending((), None) == []


def test_undone_is_what_stands_on_the_goal(forked: History) -> None:
    assert _ids(forked.undone(("e",), "b")) == "e d"
    assert sorted(_ids(forked.undone(("e",), "a")).split()) == ["b", "c", "d", "e"]
    assert _ids(forked.undone(("e",), None)).endswith(" a")
    assert forked.undone(("b",), "b") == forked.undone((), None) == []
    with pytest.raises(UsageError, match="not at or past c: it is at b"):
        forked.undone(("b",), "c")


def test_newest_never_leaves_a_revision_without_what_it_needs(forked: History) -> None:
    newest = [revision.id for revision in forked.newest(("e",))]
    assert newest[:2] == ["e", "d"]
    for count in range(len(newest) + 1):
        left = set(newest[count:])
        assert forked.lineage(left) == left


def test_resolve_reads_ids_beginnings_and_words(tmp_path: Path) -> None:
    history = _history(tmp_path, abc1="", abd2="abc1")
    assert history.resolve("base") is None
    assert history.resolve("head") == history.resolve("heads") == history.resolve("abd") == "abd2"
    with pytest.raises(UsageError, match="ab could be abc1, abd2"):
        history.resolve("ab")
    for text in ("nope", ""):
        with pytest.raises(UsageError, match=f"no revision '{text}'"):
            history.resolve(text)


@pytest.mark.parametrize(
    ("parents", "says"),
    [
        ({"a": "b", "b": "a"}, "runs in a circle"),
        ({"a": "a"}, "runs in a circle"),
        ({"a": "", "b": "a c", "c": "b"}, "runs in a circle"),
        ({"it's": ""}, r"the revision id \"it's\", and no id may have"),
        ({"a": "gone"}, "1_a.py follows gone, which this checkout lacks"),
    ],
)
def test_broken_graphs_are_told(tmp_path: Path, parents: dict[str, str], says: str) -> None:
    with pytest.raises(HistoryError, match=says):
        _history(tmp_path, **parents)


def test_long_histories_are_no_recursion(tmp_path: Path) -> None:
    parents = {f"r{number}": f"r{number - 1}" if number else "" for number in range(3000)}
    history = _history(tmp_path, **parents)
    assert len(history.pending((), "r2999")) == 3000


def test_files_are_read_without_running_them(tmp_path: Path) -> None:
    (tmp_path / "alembic.ini").write_text(
        "[alembic]\nscript_location = %(here)s/scripts\nsqlalchemy.url = postgresql://u:50%@h/x\n"
    )
    versions = tmp_path / "scripts" / "versions"
    versions.mkdir(parents=True)
    (versions / "__init__.py").touch()
    (versions / "one.py").write_text(
        '"""first line\n\nmore"""\nraise SystemExit\nrevision: str = "a1"\ndown_revision = None\n'
        'branch_labels = ("x", "y")\ndepends_on = None\n'
    )
    history = History.read(Project(tmp_path))
    found = history.revisions["a1"]
    assert (found.message, found.labels, history.resolve("y")) == ("first line", ("x", "y"), "a1")
