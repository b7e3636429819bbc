"""Measure what it costs to plan the last ten revisions, beside migrating an empty database.

Works in a temporary folder on a copy of the project. Run it: uv run python benchmarks/plan.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from benchmarks.spine import INVOKE, PACKAGES, database_url, embedded_server, project_copy
from benchmarks.timing import (
    Comparison,
    Figure,
    describe_machine,
    inherited_environment,
    parse_arguments,
    race,
    report,
    time_command,
)
from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project
from rag_factory.server import find_binaries

if TYPE_CHECKING:
    from pathlib import Path

    from rag_factory.server import ServerAddress

PENDING = 10


def main() -> None:
    arguments = parse_arguments(__doc__)
    with project_copy() as project:
        figure = measure_plan(project, arguments.repeat)
    machine = describe_machine(PACKAGES, PostgreSQL=find_binaries().version)
    report(machine, [figure], as_json=arguments.json)


def measure_plan(project: Path, rounds: int) -> Figure:
    """Time a plan on a database that lacks the last ten revisions, and a migration from nothing at all."""
    server = embedded_server(project).ensure_running()
    ids = list(History.read(Project(project)).revisions)
    behind = environment(server, "behind")
    time_command([INVOKE, "db.migrate", "--to", ids[-PENDING - 1]], project, environment=behind)
    plan, migrate = (
        f"`invoke db.plan`, {PENDING} revisions",
        f"`invoke db.migrate`, empty, {len(ids)} revisions",
    )

    def migrate_empty() -> float:
        with psycopg.connect(database_url(server, "postgres").plain, autocommit=True) as session:
            session.execute("DROP DATABASE IF EXISTS fresh")
            session.execute("CREATE DATABASE fresh")
        return time_command([INVOKE, "db.migrate"], project, environment=environment(server, "fresh"))

    rivals = {
        plan: lambda: time_command([INVOKE, "db.plan"], project, environment=behind),
        migrate: migrate_empty,
    }
    return race("A plan", rivals, [Comparison(plan, migrate, 3.0)], rounds)


def environment(server: ServerAddress, name: str) -> dict[str, str]:
    """The environment of a task on one database."""
    return inherited_environment() | {"DATABASE_URL": database_url(server, name).plain}


if __name__ == "__main__":
    main()
