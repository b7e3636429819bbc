"""One test run: which groups run, on which server, from which template. Made once, handed to the workers."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rag_factory.errors import RagFactoryError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import psycopg

    from rag_factory.database.plain import Settings
    from rag_factory.testing.databases import WorkerDatabase
    from rag_factory.testing.template import ServerFacts

GROUPS = {"db": "RUN_DB_TESTS", "integration": "RUN_INTEGRATION_TESTS", "llm": "RUN_LLM_TESTS"}
# What nobody has used for so long is collected when a new template is built.
UNUSED_SECONDS = 7 * 86_400.0


@dataclass
class Run:
    """What the tests of one run need to know.

    off: the groups that don't run, and why. place and template: as plain data, which cost no import.
    tickets: for the workers' databases. url: of the database that this process has leased. keeper: the
    session that holds its leases, and in the controller keeps the template from being collected.
    """

    root: Path
    off: dict[str, str] = field(default_factory=dict)
    place: dict[str, Any] | None = None
    template: dict[str, Any] | None = None
    problem: str = ""
    header: str = ""
    url: str = ""
    tickets: list[Any] = field(default_factory=list)
    leased: list[WorkerDatabase] = field(default_factory=list)
    keeper: psycopg.Connection[Any] | None = None

    def lease(self, worker: int = 0) -> WorkerDatabase:
        """Lease a database for this process, the worker of that number.

        Raises RagFactoryError: there is no server or template.
        """
        if self.place is None or self.template is None:
            raise RagFactoryError(self.problem or "No test database was prepared.")
        from rag_factory.testing.databases import Ticket, lease, open_keeper
        from rag_factory.testing.place import Place, checkout_id
        from rag_factory.testing.template import Template

        if self.leased:
            database = self.leased.pop()
        else:
            place = Place.from_data(self.place)
            self.keeper = self.keeper or open_keeper(place.url)
            template = Template(**self.template)
            ticket = Ticket(*self.tickets[worker]) if worker < len(self.tickets) else Ticket(worker)
            database = lease(self.keeper, place, template, checkout_id(self.root), ticket)
        self.url = database.url.plain
        return database

    def release(self) -> None:
        """End the leases that nobody took; a worker gets a ticket for its own instead."""
        if self.leased and self.keeper:
            from rag_factory.testing.template import lock_key, unlock

            unlock(self.keeper, *(lock_key(database.name) for database in self.leased))
            self.leased.clear()

    def close(self) -> None:
        """End all that this process holds."""
        self.release()
        if self.keeper is not None:
            self.keeper.close()

    def as_data(self) -> dict[str, Any]:
        """What a worker process needs to take part."""
        return {
            "off": self.off,
            "place": self.place,
            "template": self.template,
            "problem": self.problem,
            "tickets": self.tickets,
        }

    @classmethod
    def from_data(cls, root: Path, data: dict[str, Any]) -> Run:
        """The reverse of `as_data`."""
        return cls(root, **data)


def begin_run(config: Settings, workers: int, environment: Mapping[str, str]) -> Run:
    """Make server, template and `workers` databases ready.

    environment: as it was before the application's settings were hidden from the tests.
    A server or template that can't be had is kept as the run's `problem`: the tests that need it fail with
    it, and the others run.
    """
    switches = {
        "db": config.run_db_tests,
        "integration": config.run_integration_tests,
        "llm": config.run_llm_tests,
    }
    run = Run(config.root)
    for group, on in switches.items():
        if not on:
            run.off[group] = f"{GROUPS[group]} is false ({config.origin(GROUPS[group])})"
    if "db" in run.off:
        run.header = f"databases: none, {run.off['db']}"
        return run
    from psycopg import Error as DriverError

    started = time.perf_counter()
    try:
        said = _prepare(run, config, workers, environment)
    except (RagFactoryError, DriverError) as error:
        _fail(run, config, error)
    else:
        run.header = f"databases: {said}, {(time.perf_counter() - started) * 1000:.0f} ms"
    return run


def _fail(run: Run, config: Settings, error: Exception) -> None:
    """Keep why there are no databases."""
    run.close()
    run.place = run.template = run.keeper = None
    problem = error
    if not isinstance(error, RagFactoryError):
        from rag_factory.database.driver import translate
        from rag_factory.database.url import DatabaseUrl

        problem = translate(error, config.test_url or DatabaseUrl(database="postgres"))
    # Errors of connections speak of the application's variable.
    text = " ".join(re.sub(r"(?<!TEST_)\bDATABASE_URL", "TEST_DATABASE_URL", str(problem)).split())
    run.problem = f"{text} To run the other tests alone: RUN_DB_TESTS=false"
    run.header = f"databases: none. {text}"


def _prepare(run: Run, config: Settings, workers: int, environment: Mapping[str, str]) -> str:
    """Make all ready; what was found and made, in words."""
    from concurrent.futures import ThreadPoolExecutor

    from rag_factory.migrate.project import Project
    from rag_factory.testing.databases import lease_many, open_keeper
    from rag_factory.testing.place import checkout_id, find_place
    from rag_factory.testing.template import ensure_template, read_facts, read_source

    place = find_place(config, environment)
    project = Project(run.root)

    def open_server() -> ServerFacts:
        # At once the run's own, which closes it whatever fails.
        run.keeper = open_keeper(place.url, config.db_connect_timeout_seconds)
        return read_facts(run.keeper, place.url, project, config.db_connect_timeout_seconds)

    # The files are read while the server starts a session and answers: so it does not matter how many.
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(open_server)
        source = read_source(project)
    facts, server = asked.result(), run.keeper
    assert server is not None  # noqa: S101 - it has answered
    template = ensure_template(server, place, project, facts, source)
    run.leased = list(lease_many(server, place, template, checkout_id(run.root), workers))
    run.tickets = [tuple(database.ticket) for database in run.leased]
    run.place, run.template = place.as_data(), template.as_data()
    kept = sum(database.origin == "kept" for database in run.leased)
    cloned = len(run.leased) - kept
    where = "embedded" if place.embedded else place.url.server
    state = "built" if template.built else "cached"
    parts = [f"PostgreSQL {facts.version} {where}", f"template {template.name} {state}"]
    parts += [f"{number} {word}" for number, word in ((kept, "kept"), (cloned, "cloned")) if number]
    if template.built:
        from rag_factory.testing.cleanup import clean

        dropped = clean(server, place.base, unused_for_seconds=UNUSED_SECONDS)
        parts += [f"{len(dropped)} old ones dropped"] if dropped else []
    return ", ".join(parts)
