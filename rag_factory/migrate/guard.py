"""The guard: a destructive task is confirmed, and in a protected environment by the database's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_factory.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.migrate.target import Target


def confirm(
    target: Target, effect: str, *, yes: bool, database: str | None, ask: Callable[[str], str] | None
) -> None:
    """Let a destructive task through, or refuse it.

    effect: what it destroys, as a sentence without a full stop.
    database: the name typed out on the command line. ask: puts a question to the user and gives the answer;
    None where nobody can be asked.
    Raises RefusedError: not confirmed, or confirmed for another database.
    """
    name = target.url.database
    if database is not None and database != name:
        raise RefusedError(
            f"--database is {database}, but the settings lead to {target.place}. Nothing was changed.",
            fix="Correct DATABASE_URL or --database.",
        )
    if target.config.protected:
        if not (yes and database):
            raise RefusedError(
                f"{effect}, and APP_ENV is {target.config.app_env}. Nothing was changed.",
                fix=f"If that is what you want, add: --yes --database {name}",
            )
        return
    if yes:
        return
    if ask is None:
        raise RefusedError(f"{effect}. Nothing was changed.", fix="If that is what you want, add: --yes")
    if ask(f"{effect}. Go on? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise RefusedError(f"Not confirmed. Nothing was changed in {target.place}.")
