"""Each finding of the doctor, made for real; and what is mended, and what is left alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.migrate.inspection import activity, objects, vectors
from rag_factory.migrate.inspection.doctor import CHECKS, examine, mend
from rag_factory.migrate.inspection.finding import Check, Finding, Limits
from rag_factory.migrate.project import Project
from tests.conftest import ROOT
from tests.engine.testing.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.migrate.target import Target

    Run = Callable[..., list[tuple[Any, ...]]]
    Open = Callable[[], psycopg.Connection[tuple[Any, ...]]]

NOW = Limits(transaction_seconds=0, idle_in_transaction_seconds=0, prepared_seconds=0, slot_bytes=0)


@pytest.fixture
def find(patient: Target) -> Callable[..., dict[str, Finding]]:
    """Make one check; give its findings by object."""

    def make(check: Check, **limits: Any) -> dict[str, Finding]:
        examination = examine(patient, replace(NOW, **limits), [check])
        assert not examination.unseen
        return {finding.where: finding for finding in examination.findings}

    return make


def repair(patient: Target, finding: Finding) -> str:
    """Mend one finding; give what went wrong."""
    failed = mend(patient, Project(ROOT), [finding], wait_seconds=10)
    return str(failed.get(finding, ""))


def test_invalid_index_is_built_anew(patient: Target, run: Run, find: Callable[..., Any]) -> None:
    run("CREATE TABLE twice (n int)", "INSERT INTO twice VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        run("CREATE UNIQUE INDEX CONCURRENTLY twice_n ON twice (n)")
    found = find(objects.INVALID_INDEXES)["public.twice_n"]
    assert (found.severity, found.fix) == ("left-over", "REINDEX INDEX CONCURRENTLY public.twice_n")
    assert "is duplicated" in repair(patient, found) or "unique" in repair(patient, found)
    # What the REINDEX that failed had begun is gone again.
    assert list(find(objects.INVALID_INDEXES)) == ["public.twice_n"]
    run("DELETE FROM twice WHERE ctid = '(0,1)'")
    assert repair(patient, found) == ""
    assert find(objects.INVALID_INDEXES) == {}
    assert run("SELECT indisvalid FROM pg_index WHERE indexrelid = 'twice_n'::regclass") == [(True,)]


def test_mending_waits_no_longer_than_the_lock_timeout(
    patient: Target, run: Run, session: Open, find: Callable[..., Any]
) -> None:
    run("CREATE TABLE held (n int)", "ALTER TABLE held ADD CONSTRAINT positive CHECK (n > 0) NOT VALID")
    holder = session()
    holder.execute("BEGIN")
    holder.execute("LOCK TABLE held IN SHARE UPDATE EXCLUSIVE MODE")
    found = find(objects.UNVALIDATED_CONSTRAINTS)["public.held"]
    assert isinstance(patient.config, DatabaseConfig)
    hasty = replace(patient, config=patient.config.model_copy(update={"db_lock_timeout_seconds": 0.1}))
    assert "lock timeout" in repair(hasty, found)
    holder.execute("COMMIT")
    assert repair(hasty, found) == ""


def test_rest_of_a_reindex_is_dropped(patient: Target, run: Run, find: Callable[..., Any]) -> None:
    run("CREATE TABLE again (n int)", "INSERT INTO again VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        run("CREATE UNIQUE INDEX CONCURRENTLY again_n_ccnew1 ON again (n)")
    found = find(objects.INVALID_INDEXES)["public.again_n_ccnew1"]
    assert repair(patient, found) == ""
    assert run("SELECT to_regclass('again_n_ccnew1')") == [(None,)]


def test_index_that_is_being_built_is_no_left_over(run: Run, session: Open, find: Callable[..., Any]) -> None:
    run("CREATE TABLE busy (n int)")
    writer, builder = session(), session()
    writer.execute("BEGIN")
    writer.execute("INSERT INTO busy VALUES (1)")
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(builder.execute, "CREATE INDEX CONCURRENTLY busy_n ON busy (n)")
        try:
            query = "SELECT true FROM pg_index WHERE indexrelid = to_regclass('busy_n') AND NOT indisvalid"
            wait_until(lambda: run(query), "the index")
            assert find(objects.INVALID_INDEXES) == {}
        finally:
            writer.execute("COMMIT")
        building.result(timeout=60)


def test_constraint_is_validated_unless_rows_break_it(
    patient: Target, run: Run, find: Callable[..., Any]
) -> None:
    run(
        "CREATE TABLE signed (n int)",
        "INSERT INTO signed VALUES (-1)",
        "ALTER TABLE signed ADD CONSTRAINT positive CHECK (n > 0) NOT VALID",
        "ALTER TABLE signed ADD CONSTRAINT wish CHECK (n > 1) NOT ENFORCED",
    )
    found = find(objects.UNVALIDATED_CONSTRAINTS)["public.signed"]
    assert found.fix == "ALTER TABLE public.signed VALIDATE CONSTRAINT positive"
    assert "is violated by some row" in repair(patient, found)
    run("DELETE FROM signed")
    assert repair(patient, found) == ""
    assert find(objects.UNVALIDATED_CONSTRAINTS) == {}


def test_foreign_key_wants_an_index(run: Run, find: Callable[..., Any]) -> None:
    run(
        "CREATE TABLE parent (id int PRIMARY KEY, tenant int, UNIQUE (tenant, id))",
        "CREATE TABLE bare (parent_id int REFERENCES parent)",
        "CREATE TABLE bare_pair (t int, p int, FOREIGN KEY (t, p) REFERENCES parent (tenant, id))",
        "CREATE INDEX ON bare_pair (t)",
        "CREATE INDEX ON bare_pair (p) WHERE t > 0",
        "CREATE TABLE good (n int, parent_id int REFERENCES parent)",
        "CREATE INDEX ON good (parent_id, n)",
        "CREATE TABLE good_pair (t int, p int, FOREIGN KEY (t, p) REFERENCES parent (tenant, id))",
        "CREATE INDEX ON good_pair (p, t)",
        "CREATE TABLE good_part (t int, p int, n int, FOREIGN KEY (t, p) REFERENCES parent (tenant, id))",
        "CREATE INDEX ON good_part (p, n)",
        "CREATE TABLE good_open (parent_id int REFERENCES parent)",
        "CREATE INDEX ON good_open (parent_id) WHERE parent_id IS NOT NULL",
        "CREATE SCHEMA elsewhere",
        "CREATE TABLE elsewhere.bare (parent_id int REFERENCES parent)",
    )
    found = find(objects.UNINDEXED_FOREIGN_KEYS)
    assert {name: finding.fix for name, finding in found.items()} == {
        "elsewhere.bare": 'op.create_index_online("idx_bare_parent_id", "bare", ["parent_id"], '
        'schema="elsewhere"), in a revision',
        "public.bare": 'op.create_index_online("idx_bare_parent_id", "bare", ["parent_id"]), in a revision',
        "public.bare_pair": 'op.create_index_online("idx_bare_pair_t_p", "bare_pair", ["t", "p"]), '
        "in a revision",
    }
    assert not any(finding.safe for finding in found.values())


def test_sequence_near_its_end(run: Run, find: Callable[..., Any]) -> None:
    run(
        "CREATE TABLE counted (id serial, small smallserial, big bigserial, round serial, wide int)",
        "SELECT setval('counted_id_seq', 2000000000)",
        "SELECT setval('counted_small_seq', 100), setval('counted_big_seq', 2000000000)",
        "ALTER SEQUENCE counted_round_seq CYCLE",
        "SELECT setval('counted_round_seq', 2000000000)",
        "CREATE SEQUENCE made_for_more AS bigint",
        "ALTER TABLE counted ALTER wide SET DEFAULT nextval('made_for_more')",
        "SELECT setval('made_for_more', 2000000000)",
    )
    found = find(objects.SEQUENCES)
    assert set(found) == {"public.counted_id_seq", "public.made_for_more"}
    assert (
        found["public.made_for_more"].value == "at 2000000000 of 2147483647, for public.counted.wide integer"
    )


def test_indexes_that_only_cost(run: Run, find: Callable[..., Any]) -> None:
    run(
        "CREATE TABLE costly (id int PRIMARY KEY, n int, word text)",
        "CREATE INDEX costly_again ON costly (id)",
        "CREATE UNIQUE INDEX costly_id ON costly (id)",
        "CREATE INDEX costly_n ON costly (n)",
        "CREATE INDEX costly_n_down ON costly (n DESC)",
        "CREATE INDEX costly_n_some ON costly (n) WHERE n > 0",
        "CREATE INDEX costly_n_same ON costly   (n)   WHERE (n > 0)",
        "CREATE INDEX costly_word ON costly (lower(word))",
        "CREATE INDEX costly_word_down ON costly (upper(word))",
        "INSERT INTO costly SELECT i, i FROM generate_series(1, 2000) AS i",
        "ANALYZE costly",
    )
    found = find(objects.DUPLICATE_INDEXES)
    assert {name: finding.value.partition(",")[0] for name, finding in found.items()} == {
        "public.costly_again": "the same as public.costly_pkey",
        "public.costly_id": "the same as public.costly_pkey",
        "public.costly_n_same": "the same as public.costly_n_some",
    }
    unused = find(objects.UNUSED_INDEXES, index_bytes=8192)
    assert "public.costly_n" in unused
    assert "public.costly_pkey" not in unused
    assert unused["public.costly_n"].fix == 'op.drop_index_online("costly_n"), in a revision'


def test_hnsw_that_outgrew_memory_or_its_rows(run: Run, find: Callable[..., Any]) -> None:
    run(
        "ALTER DATABASE patient SET maintenance_work_mem = '1MB'",
        "CREATE TABLE embedded (id int, v vector(1000))",
        "INSERT INTO embedded SELECT i, array_fill(i::real, ARRAY[1000]) FROM generate_series(1, 400) AS i",
        "SET client_min_messages = error",  # the graph no longer fits
        "CREATE INDEX embedded_v ON embedded USING hnsw (v vector_l2_ops)",
        "CREATE INDEX embedded_half ON embedded USING hnsw ((v::halfvec(1000)) halfvec_l2_ops)",
        "SELECT pg_stat_force_next_flush()",
        "VACUUM ANALYZE embedded",
    )
    name = "public.embedded_v"
    assert find(vectors.BEYOND_MEMORY)[name].value.endswith("shared_buffers 1MB")
    assert "SET maintenance_work_mem = '" in find(vectors.BEYOND_BUILD_MEMORY)[name].fix
    # What an index of these rows takes is foretold to a quarter.
    assert find(vectors.BLOATED, index_bytes=0, bloat_factor=1.25) == {}
    assert set(find(vectors.BLOATED, index_bytes=0, bloat_factor=0.8)) == {name, "public.embedded_half"}
    run("DELETE FROM embedded WHERE id > 40", "SELECT pg_stat_force_next_flush()")
    assert find(vectors.DEAD_ROWS, dead_rows=100)[name].value == "360 of 400 rows are dead"
    run("VACUUM embedded", "ANALYZE embedded")
    assert find(vectors.DEAD_ROWS, dead_rows=100) == {}
    assert find(vectors.BLOATED, index_bytes=0)[name].fix == f"REINDEX INDEX CONCURRENTLY {name}"
    run(f"REINDEX INDEX CONCURRENTLY {name}")
    assert name not in find(vectors.BLOATED, index_bytes=0)


def test_pgvector_is_updated(patient: Target, run: Run, find: Callable[..., Any]) -> None:
    assert find(vectors.VERSION) == {}
    too_new = find(vectors.VERSION, minimum_pgvector="99.0")["extension vector"]
    assert (too_new.fix, too_new.safe) == ("upgrade pgvector on the server", False)
    run("UPDATE pg_extension SET extversion = '0.8.0' WHERE extname = 'vector'")
    assert repair(patient, find(vectors.VERSION)["extension vector"]) == ""
    assert find(vectors.VERSION) == {}


def test_transactions_that_stay_open(run: Run, session: Open, find: Callable[..., Any]) -> None:
    idle = session()
    idle.execute("BEGIN")
    idle.execute("SELECT 'forgotten'")
    found = find(activity.TRANSACTIONS, transaction_seconds=3600)[f"pid {idle.info.backend_pid}"]
    assert found.value.startswith("idle in transaction for 0 s")
    assert found.value.endswith("SELECT 'forgotten'")
    assert found.fix == f"invoke db.locks --terminate {idle.info.backend_pid}"
    assert find(activity.TRANSACTIONS, transaction_seconds=60, idle_in_transaction_seconds=60) == {}
    run("CREATE TABLE prepared ()", "BEGIN", "LOCK prepared", "PREPARE TRANSACTION 'it''s mine'")
    try:
        assert find(activity.PREPARED_TRANSACTIONS)["it's mine"].fix.startswith(
            "ROLLBACK PREPARED 'it''s mine'"
        )
        assert find(activity.PREPARED_TRANSACTIONS, prepared_seconds=60) == {}
    finally:
        run("ROLLBACK PREPARED 'it''s mine'")
    assert find(activity.PREPARED_TRANSACTIONS) == {}


def test_what_the_server_keeps_or_leaves_undone(run: Run, find: Callable[..., Any]) -> None:
    run("SELECT pg_create_physical_replication_slot('gone', true)")
    try:
        assert "pg_drop_replication_slot('gone')" in find(activity.REPLICATION_SLOTS)["gone"].fix
        assert find(activity.REPLICATION_SLOTS, slot_bytes=10**12) == {}
    finally:
        run("SELECT pg_drop_replication_slot('gone')")
    assert find(activity.WRAPAROUND) == {}
    fix = find(activity.WRAPAROUND, wraparound_share=0)["patient"].fix
    assert fix == "VACUUM (FREEZE), first the system tables"
    run("CREATE TABLE unmanaged (n int) WITH (autovacuum_enabled = off)")
    found = find(activity.AUTOVACUUM)
    assert set(found) == {"the server", "public.unmanaged"}
    fix = find(activity.WRAPAROUND, wraparound_share=0)["patient"].fix
    assert fix == "VACUUM (FREEZE), first public.unmanaged"
    assert found["public.unmanaged"].fix == "ALTER TABLE public.unmanaged RESET (autovacuum_enabled)"


def test_table_is_analyzed(patient: Target, run: Run, find: Callable[..., Any]) -> None:
    run(
        "CREATE TABLE guessed AS SELECT * FROM generate_series(1, 2000) AS n",
        "SELECT pg_stat_force_next_flush()",
    )
    found = find(activity.UNANALYZED, unanalyzed_rows=2000)["public.guessed"]
    assert repair(patient, found) == ""
    assert find(activity.UNANALYZED, unanalyzed_rows=2000) == {}


def test_looking_waits_for_no_lock(patient: Target, run: Run, session: Open) -> None:
    run(
        "CREATE TABLE locked (id int PRIMARY KEY, v vector(3), n int REFERENCES locked)",
        "CREATE INDEX locked_v ON locked USING hnsw (v vector_l2_ops)",
        "CREATE INDEX locked_id ON locked (id)",
        "CREATE INDEX locked_half ON locked ((n + 1)) WHERE n > 0",
        "ALTER TABLE locked ADD CONSTRAINT positive CHECK (n > 0) NOT VALID",
    )
    holder = session()
    holder.execute("BEGIN")
    holder.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
    examination = examine(patient, replace(NOW, index_bytes=0, unanalyzed_rows=0))
    assert examination.unseen == ()
    assert {"public.locked", "public.locked_id", f"pid {holder.info.backend_pid}"} <= {
        finding.where for finding in examination.findings
    }
    assert [finding.severity for finding in examination.findings] == sorted(
        (finding.severity for finding in examination.findings), key=["left-over", "warning", "note"].index
    )


def test_a_check_that_fails_leaves_the_others(patient: Target) -> None:
    broken = Check("broken", "note", "", "SELECT * FROM not_there")
    writing = Check("writing", "note", "", "CREATE TABLE made_by_a_check ()")
    examination = examine(patient, Limits(), [broken, writing, activity.AUTOVACUUM])
    reasons = dict(examination.unseen)
    assert set(reasons) == {"broken", "writing"}
    assert "not_there" in reasons["broken"]
    assert "read-only" in reasons["writing"]
    assert "the server" in {finding.where for finding in examination.findings}


def test_checks_have_names_of_their_own() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
