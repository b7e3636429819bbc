"""The invoke tasks: argument in, function call, lines out.

Imported by every `invoke --list`, so nothing here imports more than invoke at the top of a file.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

# invoke turns bytecode off before it loads tasks.py: all modules of ours would be compiled anew at each
# start, which is 8 of the 120 ms of `invoke --list`. Here it is again as Python was told.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)

from invoke.collection import Collection  # noqa: E402

from rag_factory.tasks import db, env, migration, safety, test, usage  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from invoke.tasks import Task


def build_namespace(root: Path, *, db_tasks: Sequence[Task[Any]] = ()) -> Collection:
    """The engine's tasks for the project at `root`, the folder of its tasks.py.

    db_tasks: the project's own that stand with those of `db`, made by `command`.
    """
    usage.take_over()
    namespace = Collection()
    namespace.add_collection(Collection("db", *db.TASKS, *migration.TASKS, *safety.TASKS, *db_tasks))
    namespace.add_collection(Collection("env", *env.TASKS))
    namespace.add_collection(Collection("test", *test.TASKS))
    # Each task runs as often as it is named: `invoke db.migrate db.rollback db.migrate` is a round trip.
    namespace.configure({"rag_factory": {"root": str(root.resolve())}, "tasks": {"dedupe": False}})
    return namespace
