"""The invoke tasks: argument in, function call, lines out.

Imported by every `invoke --list`, so nothing here imports more than invoke at the top of a file.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

# invoke turns bytecode off before it loads tasks.py: all modules of ours would be compiled anew at each
# start, which is 8 of the 120 ms of `invoke --list`. Here it is again as Python was told.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)

from invoke.collection import Collection  # noqa: E402

from rag_factory.tasks import db, env, migration, test, usage  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def build_namespace(root: Path) -> Collection:
    """The engine's tasks for the project at `root`, the folder of its tasks.py."""
    usage.take_over()
    namespace = Collection()
    namespace.add_collection(Collection("db", *db.TASKS, *migration.TASKS))
    namespace.add_collection(Collection("env", *env.TASKS))
    namespace.add_collection(Collection("test", *test.TASKS))
    # Each task runs as often as it is named: `invoke db.migrate db.rollback db.migrate` is a round trip.
    namespace.configure({"rag_factory": {"root": str(root.resolve())}, "tasks": {"dedupe": False}})
    return namespace
