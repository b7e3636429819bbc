"""Projects made of the built wheel, tried as their people would. Not part of the suite: nox -s template.

Each is made in an empty folder with an environment of its own, where the engine comes from a wheel. Only the
package registry is asked for the rest.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from rag_factory.template.creation import make_plan
from rag_factory.template.manifest import read_manifest
from rag_factory.template.tree import build_tree
from tests.conftest import ROOT, clean_environment
from tests.engine.template.foreign import FLEET, LIBRARY, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SUBJECTS = ("audit", "chat", "tenancy")
CHOICES = [",".join(each) for number in range(4) for each in combinations(SUBJECTS, number)]
LONG_NAME = "a-name-as-long-as-it-may-be-30"
BEHIND = 5
# Not of the environment that this runs in.
FOREIGN = ("VIRTUAL_ENV", "PYTHONPATH", "NOX_", "UV_PROJECT", "COVERAGE_")
COLUMN = "    content_hash: Mapped[str | None] = mapped_column(Text)\n"


@dataclass(frozen=True)
class Place:
    """A project's folder, and where its engine comes from."""

    folder: Path
    wheel: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, code: int = 0, **environment: str) -> str:
        """Run a command there; what it prints, both ways."""
        outside = {name: value for name, value in clean_environment().items() if not name.startswith(FOREIGN)}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=outside | {"UV_FIND_LINKS": str(self.wheel.parent)} | self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def uv(self, *command: str, code: int = 0, **environment: str) -> str:
        """Run a command in the project's environment, which is made and kept up by this."""
        return self.run("uv", "run", *command, code=code, **environment)

    def engine(self, *command: str, code: int = 0) -> str:
        """Run `rag-factory` of the wheel, from nowhere: a newcomer has no environment yet."""
        return self.run("uvx", "--isolated", "--from", str(self.wheel), "rag-factory", *command, code=code)


def build(source: Path, folder: Path) -> Path:
    """Build the wheel of a checkout."""
    assert shutil.which("uv"), "uv builds the wheel and makes the environments: pip install uv"
    command = ["uv", "build", "--quiet", "--out-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def older(version: str) -> str:
    """A release before this one: 0.3.1 is followed by 0.3.2, and 0.9.9 by 0.10.0."""
    numbers = [int(number) for number in version.split(".")]
    place = max(at for at, number in enumerate(numbers) if number)
    numbers[place] -= 1
    numbers[place + 1 :] = [9] * (len(numbers) - place - 1)
    return ".".join(map(str, numbers))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def older_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the last release.

    Before there is one: of the tree before the last change of a file that a project has as its own, or of
    this one in a shallow clone, which lacks it. Either with a lower version, and one line less of settings.
    """
    source = tmp_path_factory.mktemp("older")
    release = git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^")
    changed = git("log", "-1", "--format=%H", "--", *read_manifest().own)
    commit = release or git("rev-parse", "--verify", "--quiet", f"{changed}^") or "HEAD"
    subprocess.run(["git", "archive", "--output", str(source / "tree.tar"), commit], cwd=ROOT, check=True)
    shutil.unpack_archive(source / "tree.tar", source)
    if not release:
        pyproject, example = source / "pyproject.toml", source / ".env.example"
        text = pyproject.read_text(encoding="utf-8")
        found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
        assert found
        pyproject.write_text(text.replace(found[0], f'version = "{older(found[1])}"', 1), encoding="utf-8")
        lines = example.read_text(encoding="utf-8").splitlines(keepends=True)
        example.write_text("".join(lines[:-1]), encoding="utf-8")
    return build(source, tmp_path_factory.mktemp("older_wheel"))


def git(*arguments: str) -> str:
    """What git says in this checkout; nothing where it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.fixture
def place(public_folder: Path, wheel: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty folder that the embedded server's account can reach; servers in it are stopped at the end."""
    folder = public_folder / re.sub(r"\W+", "-", request.node.name)
    folder.mkdir()
    yield Place(folder, wheel)
    for tasks in folder.rglob("tasks.py"):
        if (tasks.parent / ".rag_factory").is_dir():
            Place(tasks.parent, wheel).uv("invoke", "db.stop", "test.stop")


@pytest.fixture
def new(place: Place) -> Callable[[str, str], Place]:
    """Make a project, by the wheel."""

    def make(name: str, without: str) -> Place:
        options = ["--without", without] if without else []
        place.engine("new", name, *options)
        project = replace(place, folder=place.folder / name)
        files = {
            path.relative_to(project.folder).as_posix(): path.read_bytes()
            for path in project.folder.rglob("*")
            if path.is_file()
        }
        assert files == build_tree(make_plan(name, without)), "the wheel holds another tree than the checkout"
        return project

    return make


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One environment for projects that only differ in their own files: mypy then reads the others' once."""
    folder = tmp_path_factory.mktemp("shared")
    return {"UV_PROJECT_ENVIRONMENT": str(folder / "venv"), "MYPY_CACHE_DIR": str(folder / "mypy")}


def work_on(project: Place) -> None:
    """What a team does: a revision of its own, its plan, the migration, the checks, and the sessions."""
    [models] = project.folder.glob("*/database/models/documents.py")
    text = models.read_text()
    assert text.count(COLUMN) == 1
    models.write_text(text.replace(COLUMN, COLUMN + COLUMN.replace("content_hash", "language")))
    written = project.uv("invoke", "db.revision", "-m", "language of a document")
    [revision] = (project.folder / "migrations" / "versions").glob("*language_of_a_document.py")
    assert "language" in revision.read_text(), written
    assert "language of a document: short lock" in project.uv("invoke", "db.plan")
    project.uv("invoke", "db.migrate")
    project.uv("invoke", "db.check", "db.drift")
    project.uv("nox", "-s", "tests", "lint", "typecheck")


@pytest.mark.parametrize("without", CHOICES)
def test_project_does_all_that_a_project_does(
    new: Callable[[str, str], Place], shared: dict[str, str], without: str
) -> None:
    project = replace(new(LONG_NAME if without == "chat" else "my-app", without), environment=shared)
    project.uv("invoke", "db.migrate")
    work_on(project)


def test_project_of_an_older_release_is_updated(place: Place, older_wheel: Path) -> None:
    old = replace(place, wheel=older_wheel)
    old.engine("new", "my-app")
    old, project = (replace(each, folder=place.folder / "my-app") for each in (old, place))
    old.uv("invoke", "db.migrate")
    pyproject = project.folder / "pyproject.toml"
    before = re.search(r'template_version = "(.+)"', pyproject.read_text())
    assert before
    project.run("uv", "sync", "--upgrade-package", "rag-factory")
    said = project.uv("rag-factory", "upgrade", "--check", code=BEHIND)
    found = re.search(rf"The project's files are as of {before[1]}, the engine is ([\d.]+\d)\.", said)
    assert found, said
    differing = re.findall(r"^differs from the template: (.+)$", said, re.MULTILINE)
    assert differing, "the older tree has the same own files"
    # With its old files first, then as the release asks.
    project.uv("invoke", "db.migrate", "db.check", "db.drift")
    tree = build_tree(make_plan("my-app"))
    for path in differing:
        (project.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / path).write_bytes(tree[path])
    pyproject.write_text(pyproject.read_text().replace(before[0], before[0].replace(before[1], found[1])))
    assert "asks for nothing more" in project.uv("rag-factory", "upgrade", "--check")
    work_on(project)


@pytest.mark.parametrize("files", [FLEET, LIBRARY], ids=["fleet", "library"])
def test_project_of_others_adopts_the_engine(place: Place, files: dict[str, str]) -> None:
    write(place.folder, files)
    said = place.engine("adopt", "--yes")
    for command in re.findall(r"uv add .*", said):
        place.run("sh", "-c", command)
    if files is LIBRARY:
        by_hand = re.findall(r"^    (from rag_factory.*|namespace = .*)$", said, re.MULTILINE)
        added = ["from pathlib import Path", *by_hand, "namespace.add_task(lend)"]
        with (place.folder / "tasks.py").open("a") as file:
            file.write("\n".join(["", *added, ""]))
    place.uv("invoke", "db.create")
    assert re.search(r"\d revisions? to ", place.uv("invoke", "db.plan"))
    place.uv("invoke", "db.migrate")
    place.uv("invoke", "db.check", "db.drift")
    assert "2 passed" in place.uv("pytest", "-q", "-n", "2")
    place.uv("invoke", "db.rollback", "--all", "--yes", "db.migrate")
    if files is FLEET:
        # What it did before, it does: plain alembic goes to its own address.
        [url] = re.findall(
            r"^postgresql://.*$", place.uv("invoke", "db.url", "--show-password"), re.MULTILINE
        )
        own = url.replace("postgresql://", "postgresql+psycopg://")
        assert "2 (head)" in place.uv("alembic", "current", FLEET_URL=own)
        assert "port 1 failed" in place.uv("alembic", "current", code=1)
