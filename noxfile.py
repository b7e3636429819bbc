"""The sessions: each judges the code in a fresh environment. See them: nox --list."""

from __future__ import annotations

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "lint", "typecheck"]

PROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = "embedded,autogenerate"


def install(session: nox.Session, *groups: str) -> None:
    """Install the project with what a session's dependency groups name."""
    session.install("-e", f".[{EXTRAS}]", *nox.project.dependency_groups(PROJECT, *groups))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite; arguments after -- go to pytest."""
    install(session, "tests")
    session.run("pytest", *(session.posargs or ["-n", "2"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and which module imports which."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-logo")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types."""
    install(session, "tests", "typecheck")
    session.run("mypy")
