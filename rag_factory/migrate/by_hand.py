"""What a plain alembic command gets of the runner, where it changes a database: the lock and the ledger."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_factory.migrate.ledger import Ledger
from rag_factory.migrate.lock import migrator_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alembic.config import Config

    from rag_factory.migrate.ledger import Direction
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

_WAIT_SECONDS = 60.0
_MIGRATING = {"upgrade", "downgrade", "stamp"}


def is_migrating(config: Config) -> bool:
    """Whether somebody typed an alembic command that changes the database."""
    function = (getattr(config.cmd_opts, "cmd", None) or (None,))[0]
    return getattr(function, "__name__", "") in _MIGRATING


@contextmanager
def locked_by_hand(target: Target, project: Project) -> Iterator[tuple[int, Ledger | None]]:
    """Hold the migrator lock for the body, with the key that its sessions share, and the ledger.

    Raises as `migrator_lock`.
    """
    with migrator_lock(target, project, wait_seconds=_WAIT_SECONDS, on_wait=_say) as (session, keys):
        yield keys.work, Ledger.open(session, project, _say)


def recorder(ledger: Ledger, others: Any) -> list[Callable[..., None]]:
    """What Alembic's `on_version_apply` takes: the ledger gets each step, besides whoever else listens."""

    def record(step: Any, **_: Any) -> None:
        direction: Direction = "stamp" if step.is_stamp else "up" if step.is_upgrade else "down"
        for script in step.up_revisions if step.up_revision_ids else ():
            ledger.record(script.revision, Path(script.path), direction)

    given = others or ()
    return [record, *(given if isinstance(given, (list, tuple, set)) else (given,))]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - a plain alembic command shows no log of ours
