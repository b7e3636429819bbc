"""The fixtures. SQLAlchemy is imported by the first test that asks for one of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio

from rag_factory.errors import RagFactoryError
from rag_factory.testing.run import Run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from rag_factory.testing.databases import WorkerDatabase
    from rag_factory.testing.isolation import AsyncHeld, Held

RUN = pytest.StashKey[Run]()
HELD: pytest.StashKey[Held] = pytest.StashKey()

__all__ = [
    "async_db_connection",
    "async_held_connection",
    "committing_database",
    "db_connection",
    "db_engine",
    "fresh_database",
    "held_connection",
    "migrated_to",
    "test_db_url",
    "worker_database",
]


@pytest.fixture(scope="session")
def worker_database(pytestconfig: pytest.Config) -> Iterator[WorkerDatabase]:
    """The database that this process has leased; rather use one of the fixtures below."""
    run = pytestconfig.stash[RUN]
    if "db" in run.off:
        pytest.skip(run.off["db"])
    problem = None
    try:
        database = run.lease()
    except RagFactoryError as error:
        problem = str(error)
    # Not where it is caught: pytest would show it twice.
    judge(problem)
    # The application under test, when it reads its settings, finds this database and no other.
    os.environ["DATABASE_URL"] = run.url
    from rag_factory.testing.isolation import Held

    alone = not hasattr(pytestconfig, "workerinput")
    held = pytestconfig.stash[HELD] = Held(database, alone=alone)
    yield database
    del pytestconfig.stash[HELD]
    try:
        # Fixtures of the session that used it have ended since the last test was looked at.
        judge(held.check_last(forgive=False))
    finally:
        held.close()
        database.close()


@pytest.fixture(scope="session")
def test_db_url(held_connection: Held) -> str:
    """The URL of this worker's database, for SQLAlchemy, password included."""
    return held_connection.database.url.sqlalchemy


@pytest.fixture(scope="session")
def held_connection(pytestconfig: pytest.Config, worker_database: WorkerDatabase) -> Held:
    """The connection that the tests of this worker use in turn."""
    assert worker_database  # noqa: S101 - with it there is one
    return pytestconfig.stash[HELD]


@pytest.fixture(scope="session")
def db_engine(held_connection: Held) -> Engine:
    """An engine on this worker's database. What is committed through it fails the test."""
    return held_connection.engine


@pytest.fixture
def db_connection(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A session whose commits and rollbacks work, and of which nothing remains after the test."""
    _announce(request)
    _let_commit_first(request)
    held = _held(request)
    session = held.begin()
    yield session
    judge(held.end(session))


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def async_held_connection(worker_database: WorkerDatabase) -> AsyncIterator[AsyncHeld]:
    """The asynchronous connection that the tests of this worker use in turn."""
    from rag_factory.testing.isolation import AsyncHeld

    held = AsyncHeld(worker_database)
    yield held
    await held.close()


@pytest_asyncio.fixture
async def async_db_connection(
    request: pytest.FixtureRequest, async_held_connection: AsyncHeld
) -> AsyncIterator[AsyncSession]:
    """The asynchronous twin of `db_connection`; the two don't see each other's rows."""
    _announce(request)
    _let_commit_first(request)
    session = await async_held_connection.begin()
    yield session
    judge(await async_held_connection.end(session))


@pytest.fixture
def committing_database(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine to really commit through; afterwards the template's rows and sequences are put back."""
    _announce(request)
    held = _held(request)
    held.database.committing = True
    yield held.pooled
    held.database.committing = False
    judge(held.restore())


@pytest.fixture
def fresh_database(request: pytest.FixtureRequest, worker_database: WorkerDatabase) -> Iterator[Engine]:
    """An engine on a private clone of the template, for DDL, CREATE INDEX CONCURRENTLY or anything else."""
    from sqlalchemy import NullPool, create_engine

    _announce(request)
    name = worker_database.clone()
    engine = create_engine(worker_database.place.url_of(name).sqlalchemy, poolclass=NullPool)
    yield engine
    engine.dispose()
    worker_database.drop(name)


@pytest.fixture
def migrated_to(
    request: pytest.FixtureRequest, worker_database: WorkerDatabase
) -> Iterator[Callable[[str], Engine]]:
    """Make private databases at a revision: `migrated_to("001")` gives an engine on one."""
    from sqlalchemy import NullPool, create_engine

    from rag_factory.testing.build import migrate_new_database

    _announce(request)
    names = []

    def make(revision: str) -> Engine:
        name = worker_database.reserve()
        names.append(name)
        url = worker_database.place.url_of(name)
        strategy = worker_database.template.strategy
        migrate_new_database(worker_database.server, url, request.config.rootpath, strategy, revision)
        return create_engine(url.sqlalchemy, poolclass=NullPool)

    yield make
    for name in names:
        worker_database.drop(name)


def _held(request: pytest.FixtureRequest) -> Held:
    """This process's `held_connection`; pytest is asked once, as it takes long to find it for each test."""
    held = request.config.stash.get(HELD, None)
    return held if held is not None else cast("Held", request.getfixturevalue("held_connection"))


def _announce(request: pytest.FixtureRequest) -> None:
    """Have the application find this database, also in a test that asks for its fixtures only as it runs."""
    os.environ["DATABASE_URL"] = request.config.stash[RUN].url


def _let_commit_first(request: pytest.FixtureRequest) -> None:
    """Have `committing_database`, when a test takes it too, begin before the others and end after them."""
    if "committing_database" in request.fixturenames:
        request.getfixturevalue("committing_database")


def judge(problem: str | None) -> None:
    """Fail the test by what is wrong, if anything is."""
    if problem is not None:
        pytest.fail(problem, pytrace=False)


DATABASE_FIXTURES = frozenset(__all__)
# These look at what a test left.
CHECKED = frozenset({"async_db_connection", "committing_database", "db_connection"})
