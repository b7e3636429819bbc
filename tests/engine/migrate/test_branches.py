"""Two branches that each add a revision: a conflict in git, and the ways out of it."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.errors import RefusedError, UsageError
from rag_factory.migrate.branches import check_head, head_file, rechain
from rag_factory.migrate.history import History
from rag_factory.migrate.lint import lint
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]


def git(folder: Path, *arguments: str, code: int = 0) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=work")


@pytest.fixture
def numbered(tmp_path: Path) -> Callable[..., Project]:
    """Make a project with a file for each `id="parent"`, or `id="parent name"`."""

    def make(*revisions: tuple[str, str, str]) -> Project:
        versions = tmp_path / "db" / "versions"
        versions.mkdir(parents=True)
        (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/db\n")
        for id_, parents, name in revisions:
            down = tuple(parents.split()) if " " in parents else parents or None
            (versions / name).write_text(
                f'"""{name}\n\nRevision ID: {id_}\nRevises: {parents}\n\nRevises: nothing else.\n"""\n'
                f"# über\nrevision: str = {id_!r}\ndown_revision = {down!r}  # the last one\n"
                "branch_labels = None\ndepends_on = None\n"
            )
        (tmp_path / "db" / "HEAD").write_text("?\n")
        return Project(tmp_path)

    return make


def chain(project: Project) -> dict[str, str]:
    """Each file and what it follows."""
    revisions = History.read(project).revisions.values()
    return {each.path.name: " ".join((*each.parents, each.id)) for each in revisions}


def test_two_branches_collide_in_git_and_are_put_one_after_the_other(tasks: Tasks, query: Query) -> None:
    root, project = tasks.cli.root, Project(tasks.cli.root)
    head = head_file(project)
    assert head.read_text() == "002\n"
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root)
    git(root, "checkout", "--quiet", "-b", "theirs")
    theirs = tasks.succeed("db.revision", "--empty", "-m", "their change").stdout.strip()
    commit(root)
    git(root, "checkout", "--quiet", "-b", "mine", "main")
    path = tasks.succeed("db.revision", "--empty", "-m", "my change").stdout.strip()
    mine = head.read_text().strip()
    assert mine in path
    commit(root)
    conflict = git(root, "merge", "theirs", code=1)
    assert "CONFLICT (content): Merge conflict in migrations/HEAD" in conflict
    (problem,) = check_head(project, History.read(project))
    assert problem.startswith("The history has 2 heads")
    done = tasks.succeed("db.rechain", mine, "db.migrate")
    their_id = next(id_ for id_, each in History.read(project).revisions.items() if str(each.path) == theirs)
    assert f"_my_change.py: {mine} follows {their_id}" in done.stderr
    assert head.read_text() == f"{mine}\n"
    assert [finding for finding in lint(project).findings if finding.rule == "one-head"] == []
    assert query("SELECT version_num FROM alembic_version") == [(mine,)]
    # What a database has applied stays where it is.
    says = f"{their_id}, {mine} are applied in the database.*invoke db.rollback --to 002"
    tasks.fail(4, "db.rechain", mine, "--onto", "002", says=says)


def test_numbered_revisions_get_the_next_numbers(numbered: Callable[..., Project]) -> None:
    project = numbered(
        ("001", "", "001_first.py"),
        ("002", "001", "002_theirs.py"),
        ("002", "001", "002_mine.py"),
    )
    (moved,) = rechain(project, "002_mine.py", None, applied=("001",))
    assert (moved.before.id, moved.after.id) == ("002", "003")
    assert chain(project) == {"001_first.py": "001", "002_theirs.py": "001 002", "003_mine.py": "002 003"}
    text = moved.after.path.read_text()
    assert text.startswith('"""002_mine.py\n\nRevision ID: 003\nRevises: 002\n\nRevises: nothing else.\n')
    assert 'revision: str = "003"\ndown_revision = "002"  # the last one\n' in text
    assert head_file(project).read_text() == "003\n"


def test_branch_of_several_is_moved_as_a_whole(numbered: Callable[..., Project]) -> None:
    project = numbered(
        ("001", "", "001_first.py"),
        ("002", "001", "002_theirs.py"),
        ("003", "002", "003_theirs.py"),
        ("03", "001", "03_mine.py"),
        ("004", "03", "004_mine.py"),
    )
    rechain(project, "03", "003", applied=())
    assert chain(project) == {
        "001_first.py": "001",
        "002_theirs.py": "001 002",
        "003_theirs.py": "002 003",
        "004_mine.py": "003 004",
        "005_mine.py": "004 005",
    }
    assert rechain(project, "005", "003", applied=()) == []


@pytest.mark.parametrize(
    ("which", "onto", "says"),
    [
        ("a", "c", "c stands on a already"),
        ("gone", None, "There is no revision 'gone'"),
        ("c", "gone", "There is no revision 'gone'"),
        ("m", "d", "joins branches, or is one of several"),
        ("c", None, "Which head c is to follow isn't clear: there is d, m"),
    ],
)
def test_what_cannot_be_put_in_a_row_is_refused(
    numbered: Callable[..., Project], which: str, onto: str | None, says: str
) -> None:
    project = numbered(
        ("a", "", "a.py"), ("b", "a", "b.py"), ("b2", "a", "b2.py"),
        ("m", "b b2", "m.py"), ("c", "a", "c.py"), ("d", "a", "d.py"),
    )  # fmt: skip
    before = chain(project)
    with pytest.raises(UsageError, match=re.escape(says)):
        rechain(project, which, onto, applied=())
    assert chain(project) == before


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("002", "002_mine.py and 002_theirs.py both have the id 002. Name the file"),
        ("002_mine.py", "003_more.py follows 002, and two files have that id"),
    ],
)
def test_files_of_one_id_are_told_apart(numbered: Callable[..., Project], which: str, says: str) -> None:
    project = numbered(
        ("001", "", "001_first.py"), ("002", "001", "002_theirs.py"),
        ("002", "001", "002_mine.py"), ("003", "002", "003_more.py"),
    )  # fmt: skip
    with pytest.raises(UsageError, match=re.escape(says)):
        rechain(project, which, "001", applied=())


def test_file_that_is_there_is_not_overwritten(numbered: Callable[..., Project]) -> None:
    project = numbered(
        ("001", "", "001_first.py"), ("002", "001", "002_theirs.py"),
        ("002", "001", "002_mine.py"), ("x", "001", "003_mine.py"),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"003_mine\.py is there already\. Give that file another name"):
        rechain(project, "002_mine.py", "002_theirs.py", applied=())
    assert len(list((project.root / "db" / "versions").glob("*.py"))) == 4


def test_applied_branch_is_refused_also_when_more_stands_on_it(numbered: Callable[..., Project]) -> None:
    project = numbered(("a", "", "a.py"), ("b", "a", "b.py"), ("c", "a", "c.py"), ("d", "c", "d.py"))
    with pytest.raises(RefusedError, match="c is applied in the database"):
        rechain(project, "d", "b", applied=("c",))


def test_head_file_that_lags_behind_is_found(numbered: Callable[..., Project]) -> None:
    project = numbered(("a", "", "a.py"), ("b", "a", "b.py"))
    history = History.read(project)
    assert check_head(project, history) == ["It says ['?'], and the newest revision is 'b'."]
    head_file(project).write_text("b\n")
    assert check_head(project, history) == []
    head_file(project).unlink()
    assert check_head(project, history) == []
