"""`rag-factory` and `invoke template.init`, as they are called."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rag_factory.template.creation import make_plan
from rag_factory.template.tree import build_tree
from rag_factory.template.upgrade import updating
from tests.conftest import ROOT, CommandLine
from tests.engine.template.foreign import FLEET, LIBRARY, write

if TYPE_CHECKING:
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl

# What adopting makes of the address that FLEET's env.py connects to.
CHOSEN_ADDRESS = (
    b'config.get_main_option("sqlalchemy.url") if "connection" in config.attributes else settings.URL'
)


def rag_factory(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return CommandLine(folder).run(sys.executable, "-m", "rag_factory.template", *arguments)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


@pytest.fixture
def checkout(tmp_path: Path) -> CommandLine:
    """A committed copy of this checkout, which runs its own engine."""
    folder = tmp_path / "checkout"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "-m", "The template")
    return CommandLine(folder, {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"})


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_new_writes_the_tree_and_says_what_to_run(tmp_path: Path) -> None:
    done = rag_factory(tmp_path, "new", "my-app", "--without", "chat, audit")
    assert done.returncode == 0, done.stderr
    tree = build_tree(make_plan("my-app", "audit,chat"))
    assert files_of(tmp_path / "my-app") == tree
    assert done.stdout.splitlines() == [f"+ {path}" for path in tree]
    assert done.stderr.endswith("  cd my-app\n  uv run invoke db.migrate\n  uv run nox -s tests\n")


def test_new_with_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = rag_factory(tmp_path, "new", "my-app", "--dry-run")
    assert (done.returncode, list(tmp_path.iterdir())) == (0, [])
    assert "+ my_app/database/models/base.py\n" in done.stdout
    assert done.stderr.startswith("Nothing was written.")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["My App"], 2, r"The name 'My App' has to be of lower-case letters .* Take one like my-app\."),
        (["class"], 2, "is a keyword of Python"),
        (["json"], 2, "is a module of Python's own"),
        (["rag-factory"], 2, "is a package that the project itself has or uses"),
        (["a" * 31], 2, "has 31 characters, 30 at most"),
        (["1" + "a" * 30], 2, "a letter first; and it has 31 characters"),
        (
            ["my-app", "--without", "chat,mail"],
            2,
            "no subject mail to do without. There are: chat, tenancy, audit",
        ),
        (["my-app", "--folder", "full"], 4, "full is there, and not empty. Take another name or --folder."),
        ([], 2, "The following arguments are required: NAME. To see what there is: rag-factory new --help"),
    ],
)
def test_new_refuses(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = rag_factory(tmp_path, "new", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.search(says, done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_checkout_becomes_the_same_tree(checkout: CommandLine) -> None:
    dry = checkout.invoke("template.init", "my-app", "--without", "tenancy", "--dry-run")
    assert (dry.returncode, git(checkout.root, "status", "--porcelain")) == (0, ""), dry.stderr
    done = checkout.invoke("template.init", "my-app", "--without", "tenancy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == dry.stdout
    # What it printed is what it did, as git sees it.
    git(checkout.root, "add", "--all")
    signs = {"A": "+", "M": "~", "D": "-"}
    seen = git(checkout.root, "diff", "--cached", "--no-renames", "--name-status").splitlines()
    told = [f"{signs[kind]} {path}" for kind, path in (line.split("\t") for line in seen)]
    assert sorted(done.stdout.splitlines()) == sorted(told)
    assert {"- rag_factory/errors.py", "~ noxfile.py", "+ my_app/py.typed"} < set(told)
    assert files_of(checkout.root) == build_tree(make_plan("my-app", "tenancy"))
    assert not (checkout.root / "rag_factory").exists()
    steps = ("git add --all && git commit -m 'Begin'", "uv run invoke db.migrate", "uv run nox -s tests")
    assert done.stderr.endswith("Next:\n  " + "\n  ".join(steps) + "\n")


def test_checkout_with_changes_or_a_bad_name_is_refused(checkout: CommandLine) -> None:
    done = checkout.invoke("template.init", "My App")
    assert (done.returncode, done.stdout) == (2, "")
    assert "The name 'My App' has to be of lower-case letters" in done.stderr
    (checkout.root / "notes.txt").touch()
    done = checkout.invoke("template.init", "my-app")
    assert (done.returncode, done.stdout) == (4, "")
    assert "The checkout has changes that are not committed: notes.txt. Commit them" in done.stderr
    shutil.rmtree(checkout.root / ".git")
    done = checkout.invoke("template.init", "my-app")
    assert (done.returncode, done.stdout) == (4, "")
    assert "is no git repository, so nothing could be taken back. First: git init" in done.stderr
    assert (checkout.root / "rag_factory").is_dir()


def test_project_has_no_task_to_make_one(cli: CommandLine) -> None:
    assert "template.init" not in cli.invoke("--list").stdout


@pytest.mark.parametrize("files", [FLEET, LIBRARY], ids=["fleet", "library"])
def test_adopting_adds_the_engine_once_and_nothing_else(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    before = files_of(tmp_path)
    refused = rag_factory(tmp_path, "adopt")
    assert (refused.returncode, files_of(tmp_path)) == (4, before)
    assert "If that is what you want, add: --yes" in refused.stderr
    done = rag_factory(tmp_path, "adopt", "--yes")
    assert (done.returncode, done.stdout) == (0, refused.stdout), done.stderr
    after = files_of(tmp_path)
    env = "src/fleet/migrations/env.py" if files is FLEET else "db/env.py"
    own = {"tasks.py"} if files is FLEET else set()
    changed = {path for path, content in after.items() if before.get(path) != content}
    assert changed == {env, "pyproject.toml", "tests/conftest.py", *own}
    assert before.keys() <= after.keys()
    for path in before:
        # Every line is still there, in its order. In env.py the address becomes one of two, all else stays.
        rest = iter(
            line.strip() for line in after[path].replace(CHOSEN_ADDRESS, b"settings.URL").splitlines()
        )
        assert [line for line in before[path].splitlines() if line.strip() not in rest] == [], path
    assert b'if "connection" not in config.attributes:\n' in after[env]
    assert after["pyproject.toml"].startswith(before["pyproject.toml"])
    assert (b'version_table = "fleet_version"' in after["pyproject.toml"]) is (files is FLEET)
    assert b'pytest_plugins = ["rag_factory.testing.plugin"]' in after["tests/conftest.py"]
    assert "uv add 'rag-factory[autogenerate]'" in done.stderr
    assert ("tasks.py is there, and stays as it is" in done.stderr) is (files is LIBRARY)
    again = rag_factory(tmp_path, "adopt", "--yes")
    assert (again.returncode, again.stdout, files_of(tmp_path)) == (0, "", after)
    assert "Nothing to write" in again.stderr


def test_adopted_project_is_migrated_up_and_down_by_one_process(
    tmp_path: Path, database_url: DatabaseUrl
) -> None:
    write(tmp_path, FLEET)
    assert rag_factory(tmp_path, "adopt", "--yes").returncode == 0
    cli = CommandLine(tmp_path, {"DATABASE_URL": database_url.plain, "PYTHONPATH": "src"})
    # Its env.py keeps its connections in a pool: they must not pass for those of a migrator at work.
    done = cli.invoke("db.migrate", "db.check", "db.rollback", "--all", "--yes", "db.migrate", "--wait", "5")
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(" is at 2 (head)\n")


def test_adopting_needs_an_alembic_project(tmp_path: Path) -> None:
    done = rag_factory(tmp_path, "adopt")
    assert (done.returncode, done.stdout) == (3, "")
    assert "has no alembic.ini" in done.stderr


def test_upgrade_tells_what_releases_ask_and_what_differs(tmp_path: Path) -> None:
    rag_factory(tmp_path, "new", "my-app", "--without", "chat")
    project = tmp_path / "my-app"
    done = rag_factory(project, "upgrade", "--check")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "asks for nothing more" in done.stderr
    with (project / "tasks.py").open("a") as file:
        file.write("MINE = 1\n")
    pyproject = project / "pyproject.toml"
    pyproject.write_text(
        re.sub('template_version = ".*"', 'template_version = "0.0.1"', pyproject.read_text())
    )
    done = rag_factory(tmp_path, "upgrade", "--check", "my-app")
    assert done.returncode == 5
    assert done.stdout.startswith("0.1.0\n\n")
    assert done.stdout.endswith("differs from the template: tasks.py\n")
    assert "files are as of 0.0.1, the engine is 0.1.0" in done.stderr
    done = rag_factory(project, "upgrade", "--check", "--diff")
    assert "\n-MINE = 1\n" in done.stdout
    pyproject.write_text(pyproject.read_text().replace("template_version", "other"))
    done = rag_factory(project, "upgrade", "--check")
    assert (done.returncode, done.stdout) == (3, "")
    assert "doesn't say which release its files are as of: template_version is None" in done.stderr


def test_changelog_gives_the_paragraphs_between_two_releases() -> None:
    changelog = (
        "# Changelog\n\n## [Unreleased]\n\n### Updating\n\nnot yet\n\n"
        "## [0.10.0] - 2026-03-01\n\n### Updating\n\nten\n\n- of it\n\n"
        "## [0.9.1]\n\n### Fixed\n\n- nothing to do\n\n"
        "## [0.9.0]\n\n### Updating\n\nnine\n\n### Added\n\n- more\n\n## [0.8.0]\n\n### Updating\n\neight\n"
    )
    assert updating(changelog, "0.8.0", "0.10.0") == {"0.9.0": "nine", "0.10.0": "ten\n\n- of it"}
    assert updating(changelog, "0.10.0", "0.10.0") == {}
