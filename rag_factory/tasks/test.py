"""`test.*`: the test databases and their server. The tests themselves are run by nox or pytest."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

from rag_factory.errors import NotReadyError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import human_size, say, show_columns, show_json
from rag_factory.tasks.texts import JSON, whole_number

if TYPE_CHECKING:
    from rag_factory.tasks.workspace import Workspace


@command("prepare", workers="How many databases to make ready (one for each processor).")
def prepare(work: Workspace, workers: str | None = None) -> None:
    """Make the test template and worker databases ready."""
    from rag_factory.testing.run import begin_run

    number = (os.cpu_count() or 1) if workers is None else whole_number(workers, "--workers")
    with closing(begin_run(work.test_config, number, os.environ)) as run:
        run.finish()
    if run.problem:
        raise NotReadyError(run.problem)
    say(run.header)


@command("status", json=JSON)
def status(work: Workspace, json: bool = False) -> None:
    """List the test databases."""
    from time import time

    from rag_factory.database.driver import connect
    from rag_factory.testing.cleanup import describe
    from rag_factory.testing.place import find_place

    place = find_place(work.test_config)
    timeout = work.test_config.db_connect_timeout_seconds
    with connect(place.url, connect_timeout_seconds=timeout) as server:
        found = describe(server, place.base)
    if json:
        databases = [
            {
                "name": database.name,
                "kind": database.kind,
                "size_bytes": database.size_bytes,
                "used": database.used,
                "leased": database.leased,
            }
            for database in found
        ]
        show_json({"server": place.url.server, "embedded": place.embedded, "databases": databases})
        return
    where = "embedded, " if place.embedded else ""
    say(f"test server: {where}{place.url.server}")
    show_columns(
        (
            database.name,
            database.kind,
            human_size(database.size_bytes),
            f"used {_age(time() - database.used)} ago",
            "in use" if database.leased else "free",
        )
        for database in found
    )


@command("clean")
def clean(work: Workspace) -> None:
    """Drop all test databases that no run uses."""
    from rag_factory.database.driver import connect
    from rag_factory.testing.cleanup import clean as drop_unused
    from rag_factory.testing.place import find_place

    place = find_place(work.test_config)
    timeout = work.test_config.db_connect_timeout_seconds
    with connect(place.url, connect_timeout_seconds=timeout) as server:
        dropped = drop_unused(server, place.base)
    for name in dropped:
        say(f"dropped {name}")
    if not dropped:
        say("There is nothing to clean")


@command("stop")
def stop(work: Workspace) -> None:
    """Stop the embedded test server."""
    from rag_factory.testing.place import embedded_test_server

    if not embedded_test_server(work.test_config).stop():
        say("The embedded test server was not running")


TASKS = (prepare, status, clean, stop)


def _age(seconds: float) -> str:
    """How long ago, in the largest whole unit."""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"
