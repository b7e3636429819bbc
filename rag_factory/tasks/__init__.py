"""The invoke tasks: argument in, function call, lines out.

Imported by every `invoke --list`, so nothing here imports more than invoke at the top of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.collection import Collection

from rag_factory.tasks import db, env, migration

if TYPE_CHECKING:
    from pathlib import Path


def build_namespace(root: Path) -> Collection:
    """The engine's tasks for the project at `root`, the folder of its tasks.py."""
    namespace = Collection()
    namespace.add_collection(Collection("db", *db.TASKS, *migration.TASKS))
    namespace.add_collection(Collection("env", *env.TASKS))
    namespace.configure({"rag_factory": {"root": str(root.resolve())}})
    return namespace
