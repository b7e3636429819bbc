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
from rag_factory.template.tree import build_tree
from tests.conftest import ROOT, clean_environment
from tests.engine.template.foreign import FLEET, LIBRARY, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SUBJECTS = ("audit", "chat", "tenancy")
CHOICES = [",".join(each) for number in range(4) for each in combinations(SUBJECTS, number)]
FULLY = ["", "tenancy", "audit,chat,tenancy"]
LONG_NAME = "a-name-as-long-as-it-may-be-30"
BEHIND = 5
# What a project does with tasks of the engine that are there by now: the place to add one is here.
BEFORE_MIGRATING = ("db.plan",)
AFTER_MIGRATING = ("db.check", "db.drift")
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

    def tasks(self, *names: str) -> None:
        """Run those of these tasks that the engine has."""
        listed = self.uv("invoke", "--list")
        for name in names:
            if re.search(rf"^\s*{re.escape(name)}\b", listed, re.MULTILINE):
                self.uv("invoke", name)


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
    """The wheel of the last release; before there is one, that of this checkout with a lower version."""
    source = tmp_path_factory.mktemp("older")
    described = subprocess.run(
        ["git", "describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if described.returncode == 0:
        command = ["git", "archive", "--output", str(source / "tree.tar"), described.stdout.strip()]
        subprocess.run(command, cwd=ROOT, check=True)
        shutil.unpack_archive(source / "tree.tar", source)
    else:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
        pyproject = source / "pyproject.toml"
        text = pyproject.read_text(encoding="utf-8")
        found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
        assert found
        pyproject.write_text(text.replace(found[0], f'version = "{older(found[1])}"', 1), encoding="utf-8")
    return build(source, tmp_path_factory.mktemp("older_wheel"))


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


@pytest.mark.parametrize("without", FULLY)
def test_project_does_all_that_a_project_does(new: Callable[[str, str], Place], without: str) -> None:
    project = new("my-app", without)
    project.uv("invoke", "db.migrate")
    models = project.folder / "my_app" / "database" / "models" / "documents.py"
    text = models.read_text()
    assert text.count(COLUMN) == 1
    models.write_text(text.replace(COLUMN, COLUMN + COLUMN.replace("content_hash", "language")))
    written = project.uv("invoke", "db.revision", "-m", "language of a document")
    [revision] = (project.folder / "migrations" / "versions").glob("*language_of_a_document.py")
    assert "language" in revision.read_text(), written
    project.tasks(*BEFORE_MIGRATING)
    project.uv("invoke", "db.migrate")
    project.tasks(*AFTER_MIGRATING)
    project.uv("nox", "-s", "tests", "lint", "typecheck")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One environment for projects that only differ in their own files: mypy then reads the others' once."""
    folder = tmp_path_factory.mktemp("shared")
    return {"UV_PROJECT_ENVIRONMENT": str(folder / "venv"), "MYPY_CACHE_DIR": str(folder / "mypy")}


@pytest.mark.parametrize("without", [choice for choice in CHOICES if choice not in FULLY])
def test_project_without_some_subjects_is_whole(
    new: Callable[[str, str], Place], shared: dict[str, str], without: str
) -> None:
    project = new(LONG_NAME if without == "chat" else "my-app", without)
    project = replace(project, environment=shared)
    project.uv("invoke", "db.migrate")
    project.tasks(*AFTER_MIGRATING)
    project.uv("ruff", "check")
    project.uv("ruff", "format", "--check")
    project.uv("mypy")
    collected = project.uv("pytest", "--collect-only", "--quiet")
    assert re.search(r"\d+ tests collected", collected), collected


def test_project_of_an_older_release_is_updated(place: Place, older_wheel: Path) -> None:
    old = replace(place, wheel=older_wheel)
    old.engine("new", "my-app")
    old, project = (replace(each, folder=place.folder / "my-app") for each in (old, place))
    old.uv("invoke", "db.migrate")
    before = re.search(r'template_version = "(.+)"', (project.folder / "pyproject.toml").read_text())
    assert before
    project.run("uv", "sync", "--upgrade-package", "rag-factory")
    said = project.uv("rag-factory", "upgrade", "--check", code=BEHIND)
    assert f"The project's files are as of {before[1]}, the engine is " in said
    project.uv("invoke", "db.migrate")
    project.tasks(*AFTER_MIGRATING)
    project.uv(
        "pytest", "-q", "tests/unit/database/test_models.py", "tests/integration/database/test_database.py"
    )


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
    if files is FLEET:
        place.uv("invoke", "db.create")
        place.tasks(*BEFORE_MIGRATING)
    place.uv("invoke", "db.migrate")
    place.tasks(*AFTER_MIGRATING)
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
