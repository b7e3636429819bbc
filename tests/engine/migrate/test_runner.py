"""The runner: timeouts, retries, the ledger, what it tells, and what it finds before and after."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.errors import HistoryError, LeftOversError, LockedError, NotReadyError, UsageError
from rag_factory.migrate import retry
from rag_factory.migrate.ledger import read_entries
from rag_factory.migrate.lock import find_holders, migrator_lock, read_keys
from rag_factory.migrate.project import Project
from rag_factory.migrate.schema import read_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.migrate.conftest import Small

SHOW = "INSERT INTO seen SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
LOCK_A = "LOCK TABLE a"


def ledger(small: Small) -> list[tuple[str, str, str | None]]:
    """Revision, direction and outcome of each row, oldest first."""
    with small.connect() as session:
        entries = read_entries(session, small.project)
    return [(entry.revision, entry.direction, entry.outcome) for entry in reversed(entries)]


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)


def test_nearest_timeout_wins_and_ends_with_its_revision(small: Small) -> None:
    small.query("CREATE TABLE seen (lock text, statement text)")
    small.write("002", "001", SHOW)
    small.write("003", "002", SHOW, lines='lock_timeout = "3s"\nstatement_timeout = "10min"')
    small.write("004", "003", "op.execute('SET lock_timeout = 0')")
    small.write("005", "004", SHOW)
    small.runner(db_lock_timeout_seconds=1.5).upgrade("005")
    assert small.query("SELECT * FROM seen") == [("1500ms", "0"), ("3s", "10min"), ("1500ms", "0")]
    small.write("006", "005", SHOW, lines="lock_timeout = 3")
    with pytest.raises(UsageError, match=r'sets lock_timeout to 3.*lock_timeout = "3s"'):
        small.runner().upgrade("006")


@pytest.mark.usefixtures("quick_retries")
def test_blocker_that_goes_is_named_and_waited_for(small: Small) -> None:
    small.runner().upgrade("001")
    small.write("002", "001", "CREATE TABLE made (id int)")
    small.write("003", "002", "ALTER TABLE a ADD more int")
    told: list[str] = []
    with psycopg.connect(small.target.url.plain, application_name="report") as reader:
        reader.execute("SELECT count(*) FROM a")
        tried = threading.Event()

        def hear(text: str) -> None:
            told.append(text)
            if "trying again" in text:
                tried.set()

        def let_go() -> None:
            assert tried.wait(30)
            reader.rollback()

        freeing = threading.Thread(target=let_go)
        freeing.start()
        applied: list[str] = []
        small.runner(
            db_lock_timeout_seconds=0.1,
            db_lock_retries=100,
            on_wait=hear,
            on_applied=lambda one: applied.append(one.revision.id),
        ).upgrade("003")
        freeing.join()
        pid = reader.info.backend_pid
    assert applied == ["002", "003"]
    named = rf"pid {pid}, user app, report, idle in transaction, transaction \d+ s old: SELECT count"
    assert any(text.startswith("003 waits for ") for text in told)
    assert any(
        "did not get its lock and is rolled back; trying again in 0.0 s (1 of 100)" in text for text in told
    )
    for text in told:
        assert pytest.importorskip("re").search(named, text), text
    rows = ledger(small)
    assert rows[:3] == [("001", "up", "done"), ("002", "up", "done"), ("003", "up", "failed")]
    assert rows[-1] == ("003", "up", "done")


@pytest.mark.usefixtures("quick_retries")
def test_blocker_that_never_goes(small: Small) -> None:
    small.runner().upgrade("001")
    small.write("002", "001", "CREATE TABLE made (id int)")
    small.write("003", "002", "ALTER TABLE a ADD more int")
    with psycopg.connect(small.target.url.plain) as writer:
        writer.execute("INSERT INTO a VALUES (1)")
        with pytest.raises(LockedError) as caught:
            small.runner(db_lock_timeout_seconds=0.1, db_lock_retries=2).upgrade("003")
        pid = writer.info.backend_pid
    said = str(caught.value)
    assert "Applying 003 (003_of_a_test.py) failed" in said
    assert "Tried 3 times. Held by: pid " in said
    assert f"SELECT pg_terminate_backend({pid})" in said
    assert "The database is at 002." in said
    assert small.query("SELECT version_num FROM alembic_version") == [("002",)]


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("statements", "autocommit", "lines", "tries"),
    [
        (["SET work_mem = 64"], True, "", 2),
        (["INSERT INTO b VALUES (1)"], True, "", 1),
        (["INSERT INTO b VALUES (1)", "COMMIT"], False, "", 1),
        (["INSERT INTO b VALUES (1)"], True, "repeatable = True", 2),
        (["INSERT INTO b VALUES (1)"], False, "", 2),
    ],
    ids=["nothing committed yet", "autocommit", "raw COMMIT", "said to be repeatable", "one transaction"],
)
def test_only_what_left_nothing_is_tried_again(
    small: Small, statements: list[str], autocommit: bool, lines: str, tries: int
) -> None:
    small.runner().upgrade("001")
    small.query("CREATE TABLE b (id int)")
    body = [f"op.execute({one!r})" for one in [*statements, "ALTER TABLE a ADD c int"]]
    if autocommit:
        body = ["with op.get_context().autocommit_block():", *(f"    {line}" for line in body)]
    small.write("002", "001", "\n".join(body), lines=lines)
    with psycopg.connect(small.target.url.plain) as writer:
        writer.execute("INSERT INTO a VALUES (1)")
        with pytest.raises(LockedError) as caught:
            small.runner(db_lock_timeout_seconds=0.1, db_lock_retries=1).upgrade("002")
    assert len(ledger(small)) == 1 + tries
    assert ("A part of the revision was committed" in str(caught.value)) == (tries == 1)


def test_ledger_tells_what_was_done(small: Small) -> None:
    runner = small.runner()
    runner.upgrade("001")
    runner.downgrade(small.history.newest(("001",)))
    runner.stamp("001")
    runner.stamp(None)
    small.write("001", None, "SELECT 1 / 0")
    with pytest.raises(Exception, match="division by zero"):
        small.runner().upgrade("001")
    assert ledger(small) == [
        ("001", "up", "done"),
        ("001", "down", "done"),
        ("001", "stamp", "done"),
        ("base", "stamp", "done"),
        ("001", "up", "failed"),
    ]
    ((user, took, checksum),) = small.query(
        "SELECT database_user, milliseconds > 0 AND finished >= started, length(checksum) "
        "FROM rag_factory.ledger WHERE id = 1"
    )
    assert (user, took, checksum) == ("app", True, 64)


def test_killed_run_is_told_by_the_next(small: Small) -> None:
    small.runner().upgrade("001")
    small.write("002", "001", "CREATE TABLE b (id int)")
    for revision in ("001", "002"):
        small.query(
            "INSERT INTO rag_factory.ledger (version_table, revision, direction) "
            "VALUES ('public.alembic_version', %s, 'up')",
            revision,
        )
    told: list[str] = []
    small.runner(on_wait=told.append).upgrade("002")
    assert ["killed while it applied 001" in text and "done all the same" in text for text in told] == [
        True,
        False,
    ]
    assert "killed while it applied 002" in told[1]
    assert "rolled back" in told[1]
    told.clear()
    small.runner(on_wait=told.append).upgrade("002")
    assert told == []


def test_role_that_may_keep_no_ledger_migrates_all_the_same(small: Small) -> None:
    role = f"weak_{small.target.url.database}"
    small.query(f"CREATE ROLE {role} LOGIN PASSWORD 'weak'")
    try:
        small.query(f"GRANT CREATE ON SCHEMA public TO {role}")
        told: list[str] = []
        from dataclasses import replace

        url = replace(small.target.url, user=role, password="weak")
        weak = replace(small, target=replace(small.target, url=url))
        assert weak.runner(on_wait=told.append).upgrade("001") == ("001",)
        assert len(told) == 1
        assert "no ledger is kept: permission denied" in told[0]
        assert f'GRANT CREATE ON DATABASE "{small.target.url.database}" TO {role}' in told[0]
        with pytest.raises(NotReadyError, match="keeps no ledger that this role may write") as refused:
            weak.runner().accept(weak.history.revisions["001"])
        assert refused.value.exit_code == 3
        assert small.query("SELECT to_regnamespace('rag_factory') IS NULL") == [(True,)]
    finally:
        small.query(f"DROP OWNED BY {role}")
        small.query(f"DROP ROLE {role}")


def test_edited_revision_is_refused_until_it_is_accepted(small: Small) -> None:
    small.runner().upgrade("001")
    path = small.write("001", None, "CREATE TABLE a (id int PRIMARY KEY)", "DROP TABLE a")
    small.write("002", "001", "SELECT 1")
    with pytest.raises(HistoryError, match=r"001_of_a_test\.py \(001, applied 20.*invoke db\.accept 001"):
        small.runner().upgrade("002")
    path.write_text(path.read_text() + "\n# only a comment")
    small.runner().accept(small.history.revisions["001"])
    assert small.runner().upgrade("002") == ("002",)
    path.unlink()
    small.write("001", None, "CREATE TABLE other (id int)")
    with pytest.raises(HistoryError, match="001_of_a_test"):
        small.runner().downgrade(small.history.newest(("002",))[:1])


def test_revision_taken_back_may_be_edited(small: Small) -> None:
    small.runner().upgrade("001")
    small.runner().downgrade(small.history.newest(("001",)))
    small.write("001", None, "CREATE TABLE b (id int)")
    assert small.runner().upgrade("001") == ("001",)


def test_long_transactions_and_left_overs_are_told_first(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag_factory.migrate.preflight.find_long_transactions.__defaults__", (0.0,))
    small.runner().upgrade("001")
    small.query("INSERT INTO a VALUES (1, 'x'), (2, 'x')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        small.query("CREATE UNIQUE INDEX CONCURRENTLY by_note ON a (note)")
    concurrently = "with op.get_context().autocommit_block():\n    op.execute('{}')"
    small.write("002", "001", "SELECT 1")
    told: list[str] = []
    with psycopg.connect(small.target.url.plain, application_name="report") as reader:
        reader.execute("SELECT 1")
        small.runner(on_wait=told.append).upgrade("002")
    assert any("long transaction" in text and "report, idle in transaction" in text for text in told)
    assert any("index by_note on a is INVALID" in text and "REINDEX INDEX" in text for text in told)
    small.write(
        "003", "002", concurrently.format("CREATE INDEX CONCURRENTLY IF NOT EXISTS by_note ON a (note)")
    )
    with pytest.raises(LeftOversError, match=r"003 .* is applied, but its index by_note on a is INVALID"):
        small.runner().upgrade("003")
    assert small.query("SELECT version_num FROM alembic_version") == [("003",)]


def test_applications_in_one_database_have_locks_of_their_own(small: Small, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "pyproject.toml").write_text('[tool.rag_factory]\nversion_table = "other_version"\n')
    with migrator_lock(small.target, small.project, wait_seconds=0) as (session, keys):
        with migrator_lock(small.target, Project(other), wait_seconds=0) as (_, others):
            assert keys != others
        with (
            pytest.raises(LockedError, match="Another migrator works on"),
            migrator_lock(small.target, small.project, wait_seconds=0),
        ):
            pass
        assert read_keys(session, small.project) == keys


def test_next_migrator_waits_for_what_a_killed_one_left_running(small: Small) -> None:
    with migrator_lock(small.target, small.project, wait_seconds=0) as (_, keys):
        at_work = small.connect()
        at_work.execute("SELECT pg_advisory_lock_shared(%s)", (keys.work,))
    with (
        pytest.raises(LockedError, match="at work for a migrator that is gone"),
        migrator_lock(small.target, small.project, wait_seconds=0),
    ):
        pass
    with small.connect() as session:
        assert [holder.pid for holder in find_holders(session, keys)] == [at_work.info.backend_pid]
    at_work.close()
    with migrator_lock(small.target, small.project, wait_seconds=10):
        pass


def test_lock_session_that_is_ended_stops_the_run_before_the_next_revision(small: Small) -> None:
    small.write("002", "001", "CREATE TABLE b (id int)")
    ended: list[Any] = []

    def end_session(_: Any) -> None:
        if not ended:
            with small.connect() as session:
                (lock,) = [
                    holder
                    for holder in find_holders(session, read_keys(session, small.project))
                    if holder.has_lock
                ]
                session.execute("SELECT pg_terminate_backend(%s)", (lock.pid,))
            ended.append(lock)

    with pytest.raises(Exception, match=r"(connection|terminat).*The database is at 001\."):
        small.runner(on_applied=end_session).upgrade("002")
    assert ended
    assert small.query("SELECT to_regclass('b') IS NULL") == [(True,)]


def test_schema_knows_nothing_of_the_ledger(small: Small) -> None:
    with small.connect() as session:
        small.runner(keep_ledger=False).upgrade("001")
        before = read_schema(session)
        small.runner().downgrade(small.history.newest(("001",)))
        small.runner().upgrade("001")
        assert read_schema(session) == before


def test_pauses_grow_to_half_a_minute() -> None:
    first, longest = retry.FIRST_PAUSE_SECONDS, retry.LONGEST_PAUSE_SECONDS
    assert max(retry.pause_seconds(0, first, longest) for _ in range(100)) <= 1
    assert 10 < max(retry.pause_seconds(50, first, longest) for _ in range(100)) <= 30


@pytest.fixture(autouse=True)
def no_long_run() -> Iterator[None]:
    """A pause that is not made quick shows as a slow test."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 60
