"""`env.*`: look at the settings and set them up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from invoke.exceptions import Exit

from rag_factory.errors import NotReadyError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import say, show_columns, show_json
from rag_factory.tasks.texts import JSON

if TYPE_CHECKING:
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
    for example, name in EXAMPLES.items():
        source, goal = work.root / example, work.root / name
        try:
            text = source.read_text(encoding="utf-8")
        except FileNotFoundError:
            say(f"{example} is not here; {name} not written")
            continue
        try:
            # Secrets will stand in it: only its owner may read it.
            handle = os.open(goal, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            say(f"{name} exists; left as it is")
            continue
        except OSError as error:
            raise NotReadyError(
                f"{name} can't be written: {error.strerror}.",
                fix=f"Give this user the right to write {goal.parent}.",
            ) from error
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        say(f"wrote {name}")


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
