"""The invoke tasks: argument in, function call, lines out.

Imported by every `invoke --list`, so nothing here imports more than invoke at the top of a file.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

# invoke turns bytecode off before it loads tasks.py: all modules of ours would be compiled anew at each
# start, which is 8 of the 120 ms of `invoke --list`. Here it is again as Python was told.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
# A task mostly imports and ends. By its usual threshold, the collector walks through what was imported dozens
# of times: a tenth of the task.
gc.set_threshold(100_000)

from invoke.collection import Collection  # noqa: E402

from rag_factory.tasks import (  # noqa: E402 - after the switch above
    adopt,
    backup,
    db,
    env,
    inspection,
    lint,
    migration,
    overview,
    plan,
    reembed,
    safety,
    template,
    tenants,
    test,
    usage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rag_factory.tasks.command import Command


# What `invoke` alone shows, in this order: an area and its tasks, each list a collection's or a part of one.
GROUPS: Sequence[tuple[str, str, Sequence[Command]]] = (
    ("db", "the database as a whole", db.TASKS),
    ("db", "its revisions", migration.TASKS),
    ("db", "its safety", safety.TASKS),
    ("db", "its backups", backup.TASKS),
    ("db", "what pending revisions would do", plan.TASKS),
    ("db", "lint, drift and adoption", (*lint.TASKS, *adopt.TASKS)),
    ("db", "a look inside", inspection.TASKS),
    ("db", "many databases", tenants.TASKS),
    ("db", "its embeddings", reembed.TASKS),
    ("env", "the settings", env.TASKS),
    ("test", "the test databases", test.TASKS),
)


def build_namespace(root: Path, *, db_tasks: Sequence[Command] = ()) -> Collection:
    """The engine's tasks for the project at `root`, the folder of its tasks.py.

    db_tasks: the project's own that stand with those of `db`, made by `command`.
    """
    groups = [*GROUPS, ("db", "the project's own", db_tasks)] if db_tasks else list(GROUPS)
    # Only the checkout of the template has something to make a project of.
    if (root / "rag_factory" / "template" / "manifest.toml").is_file():
        groups.append(("template", "this checkout", template.TASKS))
    namespace = Collection()
    for area in dict.fromkeys(area for area, *_ in groups):
        tasks = [task for of_area, _, tasks in groups if of_area == area for task in tasks]
        namespace.add_collection(Collection(area, *tasks))
    usage.take_over(list(namespace.task_names))
    # The default task is what `invoke` alone runs.
    namespace.add_task(overview.make_task(groups), default=True)
    namespace.configure({"rag_factory": {"root": str(root.resolve())}})
    return namespace
