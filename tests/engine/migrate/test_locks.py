"""Who waits for whom, on real sessions that block each other."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.errors import RagFactoryError, UsageError
from rag_factory.migrate.inspection import locks
from rag_factory.migrate.inspection.locks import Session, arrange, end_session, find_session, read_waits
from rag_factory.migrate.inspection.statements import without_passwords
from tests.engine.testing.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rag_factory.migrate.target import Target

    Connection = psycopg.Connection[tuple[Any, ...]]
    Open = Callable[[], Connection]
    Run = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def waiting(session: Connection, *pids: int) -> dict[int, Session]:
    """The waits, once all of these wait."""

    def look() -> dict[int, Session] | None:
        found = {one.pid: one for one in read_waits(session)}
        return found if all(pid in found and found[pid].blocked_by for pid in pids) else None

    seen: dict[int, Session] = wait_until(look, f"{pids} to wait")
    return seen


def test_chain_is_a_tree_and_ends_with_its_root(
    patient: Target, session: Open, run: Run, pool: ThreadPoolExecutor
) -> None:
    run("CREATE TABLE queue (n int)", "INSERT INTO queue VALUES (1)")
    reader, changer, late, observer = (session() for _ in range(4))
    holder, second, third = (one.info.backend_pid for one in (reader, changer, late))
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM queue")
    change = pool.submit(changer.execute, "ALTER TABLE queue\n  ADD word text")
    waiting(observer, second)
    last = pool.submit(late.execute, "DROP TABLE queue")
    seen = waiting(observer, second, third)
    # The third waits for both, and stands below the one that is before it.
    assert set(seen[third].blocked_by) == {holder, second}
    places = [(place.session.pid, place.depth) for place in arrange(list(seen.values()))]
    assert places == [(holder, 0), (second, 1), (third, 2)]
    assert seen[holder].state == "idle in transaction"
    assert seen[holder].waits_for is None
    assert seen[second].waits_for == "AccessExclusiveLock on queue"
    assert 0 <= (seen[second].waiting_seconds or -1) < 60
    with pytest.raises(UsageError, match=rf"runs no statement .* db.locks --terminate {holder}$"):
        end_session(observer, find_session(observer, holder, patient), patient)
    told = end_session(observer, find_session(observer, second, patient), patient)
    assert told == f"cancelled the statement of {second}"
    with pytest.raises(psycopg.errors.QueryCanceled):
        change.result(timeout=60)
    waiting(observer, third)
    told = end_session(observer, find_session(observer, holder, patient), patient, terminate=True)
    assert told == f"ended the session {holder}"
    last.result(timeout=60)
    assert read_waits(observer) == []


def test_row_and_prepared_transaction_are_named(session: Open, run: Run, pool: ThreadPoolExecutor) -> None:
    run("CREATE TABLE rows (n int)", "INSERT INTO rows VALUES (1)")
    first, second, observer = (session() for _ in range(3))
    run("BEGIN", "UPDATE rows SET n = 2", "PREPARE TRANSACTION 'left'")
    try:
        updates = [pool.submit(one.execute, "UPDATE rows SET n = n + 1") for one in (first, second)]
        pids = [one.info.backend_pid for one in (first, second)]
        seen = waiting(observer, *pids)
        assert {seen[pid].waits_for for pid in pids} == {"a row of rows"}
        assert (seen[0].application, seen[0].state) == ("prepared transaction", "left")
        places = arrange(list(seen.values()))
        assert [place.depth for place in places] == [0, 1, 2]
        assert places[0].session.pid == 0
    finally:
        run("COMMIT PREPARED 'left'")
    for update in updates:
        update.result(timeout=60)
    assert run("SELECT n FROM rows") == [(4,)]


def test_session_that_does_not_heed_is_told(
    patient: Target, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "EFFECT_SECONDS", 0.1)
    stuck, observer = session(), session()
    pid = stuck.info.backend_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(RagFactoryError, match=rf"{pid} was told to end, and still goes on.*db\.locks"):
            end_session(observer, find_session(observer, pid, patient), patient, terminate=True)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_pid_of_another_database_is_not_ours(patient: Target, session: Open) -> None:
    url = patient.url.with_database("postgres")
    with psycopg.connect(url.plain) as elsewhere:
        pid = elsewhere.info.backend_pid
        with pytest.raises(UsageError, match=f"No session on patient .* has the pid {pid}"):
            find_session(session(), pid, patient)


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("ALTER ROLE app PASSWORD 'a''b' VALID", "ALTER ROLE app PASSWORD *** VALID"),
        ("create role app password 'cut sho", "create role app password ***"),
        ("ALTER ROLE app\nPASSWORD $x$a'b$x$", "ALTER ROLE app\nPASSWORD ***"),
        (
            "SELECT dblink('host=db password=secret dbname=x')",
            "SELECT dblink('host=db password=*** dbname=x')",
        ),
        ("SELECT 'postgresql://app:secret@db/x'", "SELECT 'postgresql://app:***@db/x'"),
        ("SELECT password FROM users", "SELECT password FROM users"),
    ],
)
def test_passwords_in_statements_are_masked(statement: str, shown: str) -> None:
    assert without_passwords(statement) == shown


def one(pid: int, *blocked_by: int) -> Session:
    return Session(pid, "", "", "active", 1, None, None, "", blocked_by)


def test_waiter_for_several_is_shown_below_each() -> None:
    places = arrange([one(1), one(2), one(3, 1, 2), one(4, 3)])
    assert [(place.session.pid, place.depth, place.again) for place in places] == [
        (1, 0, False),
        (3, 1, False),
        (4, 2, False),
        (2, 0, False),
        (3, 1, True),
    ]


def test_circle_is_shown_once_and_a_long_chain_whole() -> None:
    places = arrange([one(1, 3), one(2, 1), one(3, 2)])
    assert [place.session.pid for place in places] == [1, 2, 3, 1]
    assert [place.again for place in places] == [False, False, False, True]
    chain = arrange([one(1), *(one(pid, pid - 1) for pid in range(2, 3000))])
    assert chain[-1].depth == 2998
