"""`env.*`: look at the settings and set them up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from invoke.exceptions import Exit

from rag_factory.errors import NotReadyError, ProblemsError, RagFactoryError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import say, show_columns, show_json
from rag_factory.tasks.texts import JSON

if TYPE_CHECKING:
    from pathlib import Path

    from rag_factory.tasks.workspace import Workspace

EXAMPLES = {".env.example": ".env", "tests/.env.test.example": "tests/.env.test"}


@command("check", json=JSON)
def check(work: Workspace, json: bool = False) -> None:
    """Check that all is ready; tell every problem at once."""
    from rag_factory.migrate.readiness import check_environment

    checks = check_environment(work.root)
    problems = [problem for found in checks for problem in found.problems]
    if json:
        rows = [
            {
                "check": found.name,
                "ok": not found.problems,
                "detail": found.detail,
                "problems": [{"what": problem.what, "fix": problem.fix} for problem in found.problems],
            }
            for found in checks
        ]
        show_json({"ok": not problems, "checks": rows})
    else:
        show_columns(
            ("ok" if not found.problems else "problem", found.name, found.detail or str(problem or ""))
            for found in checks
            for problem in (found.problems or (None,))
        )
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}."
        raise Exit(f"Not ready: {count}", code=NotReadyError.exit_code)
    if not json:
        say("Ready")


@command("init")
def init(work: Workspace) -> None:
    """Write .env files from their examples; never over yours."""
    problems: list[RagFactoryError] = []
    for example, name in EXAMPLES.items():
        try:
            text = (work.root / example).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            say(f"{example} is not here; {name} not written")
            continue
        except OSError as error:
            problems.append(
                NotReadyError(
                    f"{example} can't be read: {error.strerror}.",
                    fix="Make it a file that this user can read.",
                )
            )
            continue
        goal = work.root / name
        try:
            _write_private(goal, text)
        except FileExistsError:
            say(f"{name} exists; left as it is")
        except OSError as error:
            problems.append(
                NotReadyError(
                    f"{name} can't be written: {error.strerror}.",
                    fix=f"Give this user the right and the room to write in {goal.parent}.",
                )
            )
        else:
            say(f"wrote {name}")
    if problems:
        raise problems[0] if len(problems) == 1 else ProblemsError(problems)


@command("show", json=JSON)
def show_settings(work: Workspace, json: bool = False) -> None:
    """Show each setting, masked, and where it came from."""
    config = work.config
    rows = [(name, value, config.origin(name)) for name, value in config.shown().items()]
    if json:
        show_json([{"name": name, "value": value, "origin": origin} for name, value, origin in rows])
    else:
        show_columns(rows)


TASKS = (check, init, show_settings)


def _write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read, as secrets will stand in it; whole or not at all."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    except OSError:
        path.unlink()
        raise
