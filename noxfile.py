"""The sessions: each judges the code in an environment of its own. See them: nox --list.

They run on nox's own Python. Another one: nox -s tests-3.13, or any session with -P 3.13.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"  # dependencies are still installed each time; -N starts from nothing
nox.options.error_on_missing_interpreters = True  # a session that was asked for and didn't run isn't green
nox.options.sessions = ["tests", "lint", "typecheck"]

PROJECT = nox.project.load_toml("pyproject.toml")


def dependencies(*groups: str) -> tuple[str, ...]:
    """What these dependency groups of pyproject.toml name."""
    return nox.project.dependency_groups(PROJECT, *groups)


def workflow_files() -> list[str]:
    """The paths of the workflows."""
    return sorted(map(str, Path(".github/workflows").glob("*.yml")))


def issue_forms() -> list[str]:  # [engine]
    """The paths of the forms for an issue."""
    forms = Path(".github/ISSUE_TEMPLATE").glob("*.yml")
    return sorted(str(path) for path in forms if path.name != "config.yml")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite; arguments after -- go to pytest: a folder, -k, -n 4, --shard 2/4."""
    session.install("-e", ".", *dependencies("tests"))
    session.run("pytest", "-n", "auto", *session.posargs)


for version in nox.project.python_versions(PROJECT):
    nox.session(name=f"tests-{version}", python=version, default=False)(tests)


@nox.session
def migrations(session: nox.Session) -> None:
    """Run the tests of the revisions; arguments after -- go to pytest."""
    session.install("-e", ".", *dependencies("tests"))
    session.run("pytest", "-n", "auto", "tests/migrations", *session.posargs)


@nox.session  # [engine]
def coverage(session: nox.Session) -> None:
    """Run the test suite and measure which branches it takes; arguments after -- go to pytest."""
    session.install("-e", ".", *dependencies("tests", "coverage"))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-n", "auto", *session.posargs)
    session.run("coverage", "report")


@nox.session(default=False)  # [engine]
def template(session: nox.Session) -> None:
    """Build the wheel, and try the projects that come of it; arguments after -- go to pytest."""
    session.install("-e", ".", *dependencies("tests"))
    session.run("pytest", "-n", "2", "tests/engine/template/projects.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, imports, revisions and workflows; arguments after -- go to ruff check."""
    # The project itself: the SQL of revisions is written by running them, offline.
    session.install("-e", ".", *dependencies("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-logo")  # [engine]
    annotations = ["--github"] if "GITHUB_ACTIONS" in os.environ else []
    session.run("python", "-m", "rag_factory.migrate.lint", *annotations)
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflow_files())
    session.run("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")
    session.run(  # [engine]
        "check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", *issue_forms()
    )
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    session.run("actionlint", *workflow_files())  # named, it needs no git repository
    session.run("zizmor", "--offline", "--quiet", "--pedantic", ".github")


@nox.session  # [engine]
def docs(session: nox.Session) -> None:
    """Build the documentation into site/ and check its links; arguments after -- go to mkdocs build."""
    session.install(*dependencies("docs"))
    session.run("mkdocs", "build", "--strict", "--clean", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types; arguments after -- go to mypy."""
    session.install("-e", ".", *dependencies("tests", "typecheck"))
    session.run("mypy", *session.posargs)
