"""One test run: which groups run, on which server, from which template. Made once, handed to the workers."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_factory.errors import RagFactoryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from rag_factory.database.plain import Settings
    from rag_factory.testing.builder import Builder
    from rag_factory.testing.databases import WorkerDatabase
    from rag_factory.testing.template import ServerFacts

GROUPS = {"db": "RUN_DB_TESTS", "integration": "RUN_INTEGRATION_TESTS", "llm": "RUN_LLM_TESTS"}


@dataclass
class Run:
    """What the tests of one run need to know.

    off: the groups that don't run, and why. place and template: as plain data, which cost no import.
    where: both in words. tickets: for the workers' databases. url: of the database that this process has
    leased. keeper: the session that holds its leases, and in the controller keeps the template from being
    collected. began: when, in epoch seconds. builder: makes what isn't there. note: the file that tells other
    processes what it has made. number: of this process among the workers; in the controller, of the next one.
    """

    root: Path
    off: dict[str, str] = field(default_factory=dict)
    place: dict[str, Any] | None = None
    template: dict[str, Any] | None = None
    where: str = ""
    problem: str = ""
    header: str = ""
    url: str = ""
    tickets: list[Any] = field(default_factory=list)
    leased: list[WorkerDatabase] = field(default_factory=list)
    keeper: psycopg.Connection[Any] | None = None
    began: float = field(default_factory=time.time)
    builder: Builder | None = None
    note: str = ""
    number: int = 0

    def lease(self) -> WorkerDatabase:
        """Lease a database for this process.

        Raises RagFactoryError: there is no server or template.
        """
        self.finish()
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
            given = self.number < len(self.tickets)
            ticket = Ticket(*self.tickets[self.number]) if given else Ticket(self.number)
            database = lease(self.keeper, place, template, checkout_id(self.root, place), ticket)
        self.url = database.url.plain
        return database

    def get_ready(self) -> None:
        """Do in a worker what can be done while the template is being built."""
        import rag_factory.testing.isolation  # noqa: F401 - for the fixtures, which import it then
        from rag_factory.testing.databases import open_keeper
        from rag_factory.testing.place import Place

        if self.place is not None:
            # What is wrong is told by `lease`, to the tests that need it.
            with suppress(RagFactoryError):
                self.keeper = open_keeper(Place.from_data(self.place).url)

    def release(self) -> None:
        """End the leases that nobody took; a worker gets a ticket for its own instead."""
        if self.leased and self.keeper:
            from rag_factory.testing.template import lock_key, unlock

            unlock(self.keeper, *(lock_key(database.name) for database in self.leased))
            self.leased.clear()

    def finish(self) -> bool:
        """Wait for what is being built. False: nothing is, and all has been said."""
        if self.builder is not None:
            made = self.builder.made.result()
        elif self.note:
            from rag_factory.testing.builder import read_note

            made = read_note(Path(self.note))
        else:
            return False
        self.builder, self.note = None, ""
        if made.problem:
            self.fail(made.problem)
        else:
            self.template, self.tickets = made.template, made.tickets
            self.say(made.said, made.finished)
        return True

    def say(self, made: str, finished: float) -> None:
        """Tell by the header what was made, and how long it took. finished: in epoch seconds."""
        self.header = f"databases: {self.where} {made}, {(finished - self.began) * 1000:.0f} ms"

    def fail(self, problem: str) -> None:
        """Keep why there are no databases, and end what there is."""
        self.close()
        self.place = self.template = self.keeper = None
        # Errors of connections speak of the application's variable.
        text = " ".join(re.sub(r"(?<!TEST_)\bDATABASE_URL", "TEST_DATABASE_URL", problem).split())
        self.problem = f"{text} To run the other tests alone: RUN_DB_TESTS=false"
        self.header = f"databases: none. {text}"

    def close(self) -> None:
        """End all that this process holds, and what is being built for it."""
        if self.builder is not None:
            self.builder.stop()
            self.builder = None
        self.release()
        if self.keeper is not None:
            self.keeper.close()

    def hand_over(self) -> dict[str, Any]:
        """What the next worker process needs to take part."""
        number, self.number = self.number, self.number + 1
        return {
            "number": number,
            "off": self.off,
            "place": self.place,
            "template": self.template,
            "problem": self.problem,
            "tickets": self.tickets,
            "note": self.note,
        }

    @classmethod
    def from_data(cls, root: Path, data: dict[str, Any]) -> Run:
        """The reverse of `hand_over`."""
        return cls(root, **data)


def begin_run(config: Settings, workers: int, environment: Mapping[str, str]) -> Run:
    """Make server, template and `workers` databases ready, or begin to build what isn't there.

    Call the run's `finish` before they are used, and its `close` in any case.
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

    try:
        _prepare(run, config, workers, environment)
    except RagFactoryError as error:
        run.fail(str(error))
    except DriverError as error:
        from rag_factory.database.driver import translate
        from rag_factory.database.url import DatabaseUrl

        run.fail(str(translate(error, config.test_url or DatabaseUrl(database="postgres"))))
    return run


def _prepare(run: Run, config: Settings, workers: int, environment: Mapping[str, str]) -> None:
    """Make all ready, or begin to build what isn't there."""
    from concurrent.futures import ThreadPoolExecutor

    from rag_factory.migrate.project import Project
    from rag_factory.testing.databases import lease_many, open_keeper, say_origins
    from rag_factory.testing.place import checkout_id, find_place
    from rag_factory.testing.template import key_of, read_facts, read_source, template_name, use_template

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
    name = template_name(place, key_of(source, facts))
    server_name = "embedded" if place.embedded else place.url.server
    run.place = place.as_data()
    run.where = f"PostgreSQL {facts.version} {server_name}, template {name}"
    template = use_template(server, name, facts.strategy)
    if template is None:
        from rag_factory.testing.builder import Builder, Job

        run.builder = Builder(Job(str(run.root), run.place, name, facts.strategy, workers))
        run.header = f"databases: {run.where} is being built"
        return
    run.leased = list(lease_many(server, place, template, checkout_id(run.root, place), workers))
    run.tickets = [tuple(database.ticket) for database in run.leased]
    run.template = template.as_data()
    run.say(say_origins(template, run.leased), time.time())
