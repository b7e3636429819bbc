"""Worker databases and fixtures by rag_factory, as its pytest plug-in makes and uses them."""

from __future__ import annotations

import gc
import os
import time
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from psycopg import sql
from sqlalchemy import DateTime, Engine, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.peers.member import serve
from rag_factory.testing import builder, fixtures
from rag_factory.testing.builder import Job, Made, make
from rag_factory.testing.isolation import Held
from rag_factory.testing.run import Run, begin_run
from rag_factory.testing.settings import read_test_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.testing.databases import WorkerDatabase


class ImportedBuilder:
    """Builds in this process, which has imported what it takes before the clock runs, as the others' have."""

    def __init__(self, job: Job) -> None:
        self.made: Future[Made] = Future()
        self.made.set_result(make(job))


builder.Builder = ImportedBuilder  # type: ignore[assignment, misc]
leased: list[WorkerDatabase] = []
runs: list[Run] = []


class Base(DeclarativeBase):
    """The models."""


class Item(Base):
    """A row of the first table."""

    __tablename__ = "item_01"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), default="")
    note: Mapped[str] = mapped_column(default="")
    position: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), default=lambda: datetime.now(tz=UTC)
    )


def prepare(root: str, workers: int) -> dict[str, Any]:
    """Do what the plug-in does in the first process: alone, it takes its database; else workers follow."""
    gc.disable()
    run = begin_run(read_test_settings(Path(root)), workers, os.environ)
    run.finish()
    gc.enable()
    if run.problem:
        raise RuntimeError(run.problem)
    runs.append(run)
    if workers == 1:
        leased.append(run.lease())
    run.release()
    return {"run": run.hand_over(), "header": run.header}


def lease(root: str, run: dict[str, Any], number: int) -> str:
    """Do what the plug-in does in a worker process; where its database came from."""
    runs.append(Run.from_data(Path(root), run | {"number": number}))
    leased.append(runs[-1].lease())
    return leased[-1].origin


def end() -> None:
    """End the run."""
    while leased:
        leased.pop().close()
    while runs:
        runs.pop().close()


def measure(rival: str, times: int) -> float:
    """Run as many tests one of these ways; seconds for all."""
    with one_way[rival]() as test:
        test()  # the first one opens the held connection
        began = time.perf_counter()
        for _ in range(times):
            test()
        return time.perf_counter() - began


@contextmanager
def rollback_fixture() -> Any:
    """`db_connection`."""
    held = Held(leased[0], alone=True)
    fixture = contextmanager(plain(fixtures.db_connection))

    def test() -> None:
        with fixture(request(held)) as session:
            insert(session)

    yield test
    held.close()


@contextmanager
def savepoint_recipe() -> Any:
    """SQLAlchemy's own: "Joining a Session into an External Transaction", on one held connection."""
    engine = create_engine(leased[0].url.sqlalchemy)
    with engine.connect() as connection:

        def test() -> None:
            transaction = connection.begin()
            session = Session(bind=connection, join_transaction_mode="create_savepoint")
            insert(session)
            session.close()
            transaction.rollback()

        yield test
    engine.dispose()


@contextmanager
def committing_fixture() -> Any:
    """`committing_database`."""
    held = Held(leased[0], alone=True)
    fixture = contextmanager(plain(fixtures.committing_database))

    def test() -> None:
        engine: Engine
        with fixture(request(held)) as engine, Session(engine) as session:
            insert(session)

    yield test
    held.close()


@contextmanager
def fresh_fixture() -> Any:
    """`fresh_database`, without a test."""
    fixture = contextmanager(plain(fixtures.fresh_database))

    def test() -> None:
        with fixture(request(None), leased[0]):
            pass

    yield test


@contextmanager
def raw_clone() -> Any:
    """The two statements that `fresh_database` can't do without."""
    database = leased[0]
    clone, template = sql.Identifier("raw_clone"), sql.Identifier(database.template.name)
    strategy = sql.Identifier(database.template.strategy.lower())

    def test() -> None:
        database.server.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(clone, template, strategy)
        )
        database.server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(clone))

    yield test


def insert(session: Session) -> None:
    """What each test does."""
    session.add(Item(name="one"))
    session.commit()


def request(held: Held | None) -> Any:
    """What the fixtures need of pytest."""
    stash = {fixtures.RUN: runs[0], fixtures.HELD: held}
    return SimpleNamespace(config=SimpleNamespace(stash=stash), fixturenames=())


def plain(fixture: Any) -> Any:
    """The generator function below `@pytest.fixture`."""
    return fixture.__wrapped__


one_way: dict[str, Callable[[], Any]] = {
    each.__name__: each
    for each in (rollback_fixture, savepoint_recipe, committing_fixture, fresh_fixture, raw_clone)
}

if __name__ == "__main__":
    serve({"prepare": prepare, "lease": lease, "end": end, "measure": measure})
