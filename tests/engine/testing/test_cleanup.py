"""Collecting test databases that nobody uses."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

from psycopg import sql

from rag_factory.testing.cleanup import clean, describe
from tests.engine.testing.conftest import wait_until

if TYPE_CHECKING:
    from tests.engine.testing.conftest import Checkout

WAITING = """
def test_waits(db_connection, fresh_database):
    open("waiting", "w").close()
    db_connection.execute(text("SELECT pg_sleep(600)"))
"""
DAY = 86_400
# Somebody else's, however much like ours their names are.
OTHERS = {"mine", "20240131_1", "tpl_0123456789ab", "ragw_mine"}


def age(checkout: Checkout, name: str, days: float) -> None:
    """Make a database's mark older."""
    database = f"{checkout.base}_{name}"
    with checkout.connect() as server:
        row = server.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", (database,)
        ).fetchone()
        assert row
        mark = json.loads(row[0])
        mark["rag_factory"]["used"] -= days * DAY
        statement = sql.SQL("COMMENT ON DATABASE {} IS {}")
        server.execute(statement.format(sql.Identifier(database), sql.Literal(json.dumps(mark))))


def test_live_databases_are_told_and_never_dropped(checkout: Checkout) -> None:
    checkout.write_test(WAITING)
    run = checkout.start()
    wait_until((checkout.root / "waiting").exists, "the test to wait")
    with checkout.connect() as server:
        for name in OTHERS:
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(f"{checkout.base}_{name}")))
        found = describe(server, checkout.base)
        assert [(one.kind, one.leased) for one in found] == [
            ("template", True),
            ("worker", True),
            ("clone", True),
        ]
        assert all(one.size_bytes > 1_000_000 for one in found)
        assert [time.time() - one.used < 60 for one in found] == [True, True, False]
        assert clean(server, checkout.base) == []

        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        wait_until(
            lambda: not any(one.leased for one in describe(server, checkout.base)), "the leases to end"
        )
        # What was never marked is nobody's; the others are young.
        assert clean(server, checkout.base, unused_for_seconds=DAY) == [found[2].name]
        assert clean(server, checkout.base) == [found[0].name, found[1].name]
    assert checkout.databases() == OTHERS


def test_what_is_old_goes_when_a_template_is_built(checkout: Checkout) -> None:
    checkout.write_test("def test_it(db_connection):\n    pass\n")
    checkout.pytest("-n", "2", "--dist", "each").assert_passed()
    (old,) = checkout.databases("^ragt_")
    age(checkout, old, 8)
    age(checkout, checkout.worker(1), 8)

    checkout.write_revision("SELECT 1", 2)
    header = checkout.pytest().header
    assert " built, 1 cloned, 2 old ones dropped, " in header, header
    (new,) = checkout.databases("^ragt_")
    assert new != old
    assert checkout.databases() == {new, checkout.worker(0)}

    age(checkout, new, 6)
    age(checkout, checkout.worker(), 6)
    checkout.pytest().assert_passed(1)
    with checkout.connect() as server:
        assert all(time.time() - one.used < 60 for one in describe(server, checkout.base))
