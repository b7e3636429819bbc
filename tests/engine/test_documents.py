"""The documentation: each command in it is run, and prints what it shows; every other block says why not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from rag_factory.server import EmbeddedServer
from tests.conftest import ROOT, CommandLine
from tests.engine.documents import agrees, find_indented, is_run, read_blocks, read_commands, run_page
from tests.engine.written_commands import read_inline, wrong_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OUTSIDE = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "tests" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "rag_factory" / "template" / "project" / "README.md",
]
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").rglob("*.md"))]
# Their blocks are run by tests of their own, which take them out of the page.
TESTED_ELSEWHERE = {
    "docs/howto/change-the-embedding-model.md": "tests/integration/tasks/test_change_the_model.py",
    "docs/howto/many-tenants.md": "tests/integration/database/test_row_security.py",
    "docs/howto/smaller-vector-indexes.md": "tests/integration/database/test_smaller_indexes.py",
    "docs/howto/use-an-embedding-model.md": "tests/unit/services/test_howto.py",
    "tests/README.md": "tests/engine/testing/test_readme.py",
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# A picture or a machine's answer is looked at, not run.
SHOWN = {"mermaid", "text", "json"}
RUN = [
    page
    for page in PAGES
    if any(block.kind == "console" and is_run(block) for block in read_blocks(page))
    and name(page) not in TESTED_ELSEWHERE
]


@pytest.fixture
def reader(project: Path, public_folder: Path) -> Iterator[CommandLine]:
    """The command line of somebody who begins: a copy of the whole project, no setting, no server yet."""
    for part in ("migrations", "docs", "rag_factory"):
        shutil.copytree(ROOT / part, project / part, dirs_exist_ok=True)
    # The one line that tests/conftest.py has for a project.
    (project / "tests" / "conftest.py").write_text('pytest_plugins = ["rag_factory.testing.plugin"]\n')
    data_folder = public_folder / "reader"
    # Of the copy, as if it were installed: a page may change the models.
    cli = CommandLine(project, {"EMBEDDED_DATA_FOLDER": str(data_folder), "PYTHONPATH": str(project)})
    try:
        yield cli
    finally:
        EmbeddedServer(data_folder).stop()
        EmbeddedServer(data_folder, name="test-postgresql").stop()
        shutil.rmtree(data_folder, ignore_errors=True)


@pytest.mark.parametrize("page", RUN, ids=name)
def test_page_does_what_it_says(page: Path, reader: CommandLine) -> None:
    wrong = list(run_page(page, reader))
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    assert not find_indented(page), "write it as a fenced block: only those are run"
    if name(page) in TESTED_ELSEWHERE:
        test = (ROOT / TESTED_ELSEWHERE[name(page)]).read_text()
        assert page.name in test, "that test reads this page"
        return
    for block in read_blocks(page):
        run = block.kind == "console" or block.title is not None
        assert run or block.not_run or block.kind in SHOWN, f"line {block.line}: {block.kind}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_one_that_there_is(page: Path) -> None:
    """Of those that nothing runs: in blocks that are read only, and in sentences."""
    blocks = [block for block in read_blocks(page) if block.kind == "console" and not is_run(block)]
    lines = [command.text for block in blocks for command in read_commands(block)]
    wrong = [problem for line in (*lines, *read_inline(page)) for problem in wrong_in(line)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("invoke db.migrat", "no task db.migrat"),
        ("uv run invoke db.plan --markdwon > file", "no option --markdwon"),
        ("DB_NAME=x invoke --lits", "no option --lits"),
        ("uv run nox -s tests lnit", "no session lnit"),
        ("uvx nox -s lint && pytest --shrad 1/2", "no option --shrad"),
        ("pytest tests/nothing", "no file tests/nothing"),
        ("python benchmarks/none.py", "no file benchmarks/none.py"),
        ("python -m benchmarks.stalls --ones", "no option --ones"),
        ("rag-factory new my-app --witohut chat", "no option --witohut"),
        ("rag-factory renew", "no command renew"),
        ("make all", "make is not known here"),
    ],
)
def test_command_that_is_not_there_is_found(line: str, problem: str) -> None:
    (found,) = wrong_in(line)
    assert problem in found


def test_runner_tells_what_is_not_so(tmp_path: Path, reader: CommandLine) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```text title="a/file"\nhello\n```\n'
        "```console\n$ cat \\\n  a/file\nhello\n$ cat a/file\ngood bye\n$ false\n$ echo 12 ms\n7 ms\n```\n"
        "<!-- not run: it would stay false -->\n```console\n$ false\n```\n"
    )
    wrong = list(run_page(page, reader))
    assert len(wrong) == 2
    assert "page.md, line 4: cat a/file\nprinted\nhello\n\ninstead of\ngood bye" in wrong[0]
    assert "false\nended with 1" in wrong[1]
    assert [len(list(read_commands(block))) for block in read_blocks(page) if block.kind == "console"] == [
        4,
        1,
    ]


def test_indented_block_is_found_and_none_other(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("- a list\n    that goes on\n\n```text\n\n    fenced\n```\n\n    $ indented\n\n\ta tab\n")
    assert find_indented(page) == [9, 11]


def test_output_agrees_with_its_ellipses(tmp_path: Path) -> None:
    shown = "one\n…\nlast … word\n"
    assert agrees(shown, "one\ntwo\nthree\nlast of all, a word\n", tmp_path)
    assert agrees(shown, "one\nlast a word\n", tmp_path)
    assert not agrees(shown, "one\ntwo\n", tmp_path)
    assert not agrees(shown, "zero\none\nlast a word\n", tmp_path)
