"""What every test database carries in a schema of its own: functions that prove and restore it.

They are written for the tables that the template has, so that each is planned once in a session and costs one
round trip. A table that is empty in the template is unchanged when it is empty; one with rows when the same
transactions wrote them, or when they read the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus

from rag_factory.testing.objects import (
    ACTIVITY,
    DATABASE_CHANGED,
    EXPECT,
    OBJECTS_CHANGED,
    PREPARED,
    READABLE,
    SCHEMA,
    SETTINGS,
    sum_up,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

# The prepared statement that calls `restore`.
RESTORE = b"restore"
# Objects of users have ids from here on; those below come with the server.
FIRST_USER_OID = 16384
# How long restoring waits for rows that a test's own forgotten transaction holds.
LOCK_TIMEOUT_SECONDS = 2
# Looking at more transactions one by one would cost as much as looking at the tables.
FEW_TRANSACTIONS = 50
# What `changed` says of more than rows.
OBJECTS = "tables, constraints, functions or other objects"
# A search that an HNSW index answers gets lost among four hundred dead copies of one vector.
DEAD_IN_A_GRAPH = 100
_GRAPHS = """
    SELECT indrelid FROM pg_index JOIN pg_class AS i ON i.oid = indexrelid
    JOIN pg_am AS method ON method.oid = i.relam WHERE amname = 'hnsw'
"""
_MUCH_DEAD = f"""
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.oid >= 16384 AND pg_stat_get_dead_tuples(c.oid) > CASE
        WHEN c.oid IN ({_GRAPHS}) THEN {DEAD_IN_A_GRAPH} ELSE 1000 END
"""
# Each with the columns that can be written: generated ones can't. Materialized views are proved only. An
# extension's own tables are its own business: background workers write some of them.
_RELATIONS = f"""
    SELECT c.relkind::text, format('%I.%I', n.nspname, c.relname),
           (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
            WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''),
           c.relrowsecurity, c.oid IN ({_GRAPHS})
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence <> 't' AND c.relispopulated
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'rag_factory_testing')
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY n.nspname, c.relname
"""
# A column may have the name of a variable, and then it is meant.
_COLUMNS_FIRST = "#variable_conflict use_column"
# A table that a test left locked must not be waited for.
_IMPATIENT = f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"
# One may write rows, or refuse.
_NO_EVENT_TRIGGERS = """
    SELECT set_config('session_replication_role', 'replica', true)
    WHERE has_parameter_privilege('session_replication_role', 'SET')
"""
_ALWAYS_FIRES = """(
    EXISTS (SELECT FROM pg_trigger WHERE tgenabled IN ('A', 'R'))
    OR EXISTS (SELECT FROM pg_rewrite WHERE ev_enabled IN ('A', 'R'))
)"""
_DEFERRABLE = f"EXISTS (SELECT FROM pg_constraint WHERE condeferrable AND oid >= {FIRST_USER_OID})"


@dataclass(frozen=True)
class _Full:
    """A table with rows in the template. copy: the table that keeps them. written: by which transactions.

    number: how many. A test that empties all tables of the database empties the copy too.
    """

    name: str
    copy: str
    columns: str
    written: str

    @property
    def number(self) -> str:
        return self.written.partition(" ")[0]

    @property
    def differs(self) -> str:
        """Whether the table's rows are others. Reading them all is only needed once they were put back."""
        return (
            f"(({_written(self.name)}) <> '{self.written}' AND "
            f"((SELECT count(*) FROM {self.copy}) <> {self.number} OR "
            f"({_content(self.name, self.columns)}) <> ({_content(self.copy, self.columns)})))"
        )

    @property
    def refill(self) -> str:
        """The statement that puts the rows back."""
        return (
            f"DELETE FROM ONLY {self.name}; "
            f"INSERT INTO {self.name} ({self.columns}) OVERRIDING SYSTEM VALUE "
            f"SELECT {self.columns} FROM {self.copy}; "
            f"GET DIAGNOSTICS put_back = ROW_COUNT; "
            f"IF put_back <> {self.number} THEN lost := 'the rows of {_literal(self.name)}'; END IF;"
        )


def install(connection: psycopg.Connection[Any]) -> str:
    """Create the schema and its functions in a database that has just been migrated; its fingerprint."""
    relations = _all(connection, _RELATIONS)
    tables = [(name, columns) for kind, name, columns, *_ in relations if kind == "r"]
    views = [name for kind, name, *_ in relations if kind == "m"]
    sequences = [name for kind, name, *_ in relations if kind == "S"]
    # All that must be known of them, asked in one round trip.
    questions = [_ALWAYS_FIRES, READABLE]
    questions += [f"EXISTS (SELECT FROM ONLY {name})" for name, _ in tables]
    questions += [f"({_written(name)})" for name in (*(name for name, _ in tables), *views)]
    questions += [f"(SELECT last_value || ' ' || is_called FROM {name})" for name in sequences]
    answers = iter(
        _all(connection, f"SELECT ARRAY[{', '.join(f'{each}::text' for each in questions)}]")[0][0]
    )
    always_fires = next(answers) == "true"
    catalogs = next(answers).split()
    has_rows = [next(answers) == "true" for _ in tables]
    written = [next(answers) for _ in (*tables, *views)]
    states = [(name, *next(answers).split()) for name in sequences]

    full = [
        _Full(name, f"{SCHEMA}.copy_{number}", columns, written[number])
        for number, (name, columns) in enumerate(tables)
        if has_rows[number] and columns
    ]
    empty = [name for (name, _), filled in zip(tables, has_rows, strict=True) if not filled]
    # Nothing can be put back into a table that has rows and no column to write.
    proved = [
        (name, written[number])
        for number, (name, columns) in enumerate(tables)
        if has_rows[number] and not columns
    ]
    proved += zip(views, written[len(tables) :], strict=True)
    unlike = [f"({_written(name)}) <> '{then}'" for name, then in proved]
    rows = {f"the rows of {name}": f"EXISTS (SELECT FROM ONLY {name})" for name in empty}
    rows |= {f"the rows of {table.name}": table.differs for table in full}
    others = {"the rows of materialized views": " OR ".join(unlike)} if unlike else {}
    # The functions that read it are objects too, so the fingerprint is taken last.
    objects = {OBJECTS: OBJECTS_CHANGED}
    # A trigger that always fires may write while rows are put back; then they are looked at once more.
    afterwards = rows | others if always_fires else others
    hidden = [f"row_security_active('{_literal(name)}')" for _, name, _, secured, _ in relations if secured]
    unseen = " OR ".join(hidden) or "false"
    statements = (
        _NO_EVENT_TRIGGERS,
        # The server need not try to understand the functions before they are called.
        "SET LOCAL check_function_bodies = off",
        f"CREATE SCHEMA {SCHEMA}",
        *(f"CREATE TABLE {table.copy} AS SELECT {table.columns} FROM ONLY {table.name}" for table in full),
        sum_up(catalogs),
        _changed(rows | others | objects),
        _left_to_do([name for _, name, _, _, in_graph in relations if in_graph]),
        _PROVE,
        _reset_sequences(states),
        _settle(unseen),
        ACTIVITY,
        _restore(empty, full, states, afterwards, unseen),
        _fingerprint(rows | others | {"the database itself": f"{DATABASE_CHANGED} OR {PREPARED}"}, unseen),
        EXPECT,
    )
    connection.execute(";".join(statements).encode())
    # Nothing differs yet, so what `fingerprint` would add to the objects is what is hidden.
    return str(_one(connection, f"SELECT {SCHEMA}.expected() || {_unseen(unseen)}"))


def fingerprint(connection: psycopg.Connection[Any]) -> str:
    """Prove and reset: the fingerprint of schema and rows, with all sequences set back. One round trip."""
    return str(_one(connection, f"SELECT {SCHEMA}.fingerprint()"))


def prepare_restore(connection: psycopg.Connection[Any]) -> None:
    """Prepare a session that is there to restore: its statement, and triggers and foreign keys off.

    The latter if its role may. To do so for each call would have the server plan all anew.
    """
    # The name tells it from the application's own sessions.
    connection.execute("SET application_name = 'rag-factory testing'")
    connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'".encode())
    # Else the server plans the long queries anew for each of the first five calls.
    connection.execute("SET plan_cache_mode = 'force_generic_plan'")
    if _one(connection, "SELECT has_parameter_privilege('session_replication_role', 'SET')"):
        connection.execute("SET session_replication_role = 'replica'")
    prepared = connection.pgconn.prepare(RESTORE, f"SELECT {SCHEMA}.restore($1, $2)".encode())
    if prepared.status != ExecStatus.COMMAND_OK:
        raise error_from_result(prepared)


def settle(connection: psycopg.Connection[Any], proved: int) -> str:
    """Set the sequences back, and say what has changed since the proved transaction; empty for nothing."""
    return str(_one(connection, f"SELECT {SCHEMA}.settle({proved})"))


def vacuum(connection: psycopg.BaseConnection[Any]) -> None:
    """Clear away what rollbacks have left, where it is much: searches of an HNSW index meet it.

    connection: without an open transaction; through libpq, as the driver would begin one.
    """
    libpq = connection.pgconn
    libpq.exec_(b"SELECT pg_stat_force_next_flush()")
    found = libpq.exec_(_MUCH_DEAD.encode())
    for row in range(found.ntuples):
        libpq.exec_(b"VACUUM (INDEX_CLEANUP ON, SKIP_LOCKED) " + (found.get_value(row, 0) or b""))


def read_properties(connection: psycopg.Connection[Any]) -> tuple[list[list[str]], bool]:
    """What was set for the database, and whether a rollback would skip a check that a commit makes.

    A setting is the role that it is for, or an empty text, with its name and its value.
    """
    found, deferrable = _all(connection, f"SELECT ARRAY({SETTINGS}), {_DEFERRABLE}")[0]
    return [[role, *text.split("=", 1)] for role, text in found], deferrable


def _all(connection: psycopg.Connection[Any], query: str, *values: Any) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode(), values or None).fetchall()


def _one(connection: psycopg.Connection[Any], query: str) -> Any:
    """The one value of a query that always has one."""
    return _all(connection, query)[0][0]


def _literal(text: str) -> str:
    return text.replace("'", "''")


def _written(name: str) -> str:
    """A text that differs when rows were added, changed or removed by a transaction that has committed."""
    return f"SELECT count(*) || ' ' || coalesce(sum(xmin::text::bigint), 0) FROM ONLY {name}"


def _content(name: str, columns: str) -> str:
    """A number that differs when the rows of a table do, in whatever order they are."""
    return (
        "SELECT count(*) + coalesce(sum(hashtextextended((written_rows.*)::text, 0)), 0) "
        f"FROM (SELECT {columns} FROM ONLY {name}) AS written_rows"
    )


def _array(parts: Sequence[str]) -> str:
    """One query for them all costs less than one each."""
    return f"ARRAY[{', '.join(parts)}]" if parts else "'{}'"


def _first(tests: dict[str, str]) -> str:
    """The name of the first test that is true; null when none is."""
    cases = "\n".join(f"WHEN {test} THEN '{_literal(name)}'" for name, test in tests.items())
    return f"CASE {cases} END" if cases else "NULL"


def _changed(tests: dict[str, str]) -> str:
    """The function that says what differs from the template: a table's rows, or objects; else null."""
    return f"""
        CREATE FUNCTION {SCHEMA}.changed() RETURNS text LANGUAGE plpgsql {_IMPATIENT} AS $changed$
        {_COLUMNS_FIRST}
        BEGIN
            RETURN {_first(tests)};
        END;
        $changed$
    """


def _left_to_do(graphs: list[str]) -> str:
    """The function that says whether there is much to vacuum, and who has not ended what they wrote.

    Much: so many dead rows in an HNSW index that a search may get lost. What this session has written and the
    server has not added to the rest yet may all be dead. Who: the process ids of all sessions but the known
    ones, and 0 for a prepared transaction, or a dash for nobody. known: null for no look at the sessions.
    Nobody has one open when the first number that may still be at work is the next that will be given. That
    is told only before this session has one of its own.
    """
    counts = ("dead_tuples", "xact_tuples_inserted", "xact_tuples_updated", "xact_tuples_deleted")
    tables = [f"'{_literal(name)}'::regclass" for name in graphs]
    sums = (" + ".join(f"pg_stat_get_{count}({table})" for count in counts) for table in tables)
    return f"""
        CREATE FUNCTION {SCHEMA}.left_to_do(known integer[]) RETURNS text LANGUAGE plpgsql AS $left$
        DECLARE
            much boolean := {" OR ".join(f"{each} > {DEAD_IN_A_GRAPH}" for each in sums) or "false"};
            sessions text;
        BEGIN
            IF age(pg_snapshot_xmin(pg_current_snapshot())::xid) <> 0
               OR known IS NOT NULL AND pg_current_xact_id_if_assigned() IS NOT NULL THEN
                sessions := (
                    SELECT string_agg(pid::text, ',') FROM pg_stat_get_activity(NULL)
                    WHERE known IS NOT NULL AND backend_xid IS NOT NULL AND backend_type = 'client backend'
                      AND pid <> pg_backend_pid() AND pid <> ALL (known)
                      AND datid = (SELECT oid FROM pg_database WHERE datname = current_database())
                );
                IF EXISTS (
                    SELECT FROM pg_prepared_xact() AS each (transaction, gid, prepared, ownerid, dbid)
                    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                ) THEN
                    sessions := concat_ws(',', sessions, '0');
                END IF;
            END IF;
            RETURN concat(much, ' ', coalesce(sessions, '-'));
        END;
        $left$
    """


# What a test that committed nothing leaves is proved without a look at the tables: when no transaction on
# the whole server has committed since the last proof, nothing has changed. Those that still run count the
# next time. It also gives back a session's advisory locks, which outlive its transactions. It says before
# which transaction nothing changed, what `left_to_do` says, and what did change after it. own: a transaction
# that has put back what had changed.
_PROVE = f"""
    CREATE FUNCTION {SCHEMA}.prove(since bigint, known integer[], own bigint) RETURNS text
    LANGUAGE plpgsql AS $prove$
    DECLARE
        snapshot pg_snapshot := pg_current_snapshot();
        upto bigint := pg_snapshot_xmax(snapshot)::text;
    BEGIN
        PERFORM pg_advisory_unlock_all();
        IF upto - since <= {FEW_TRANSACTIONS} THEN
            WHILE since < upto AND (since = own OR pg_xact_status(since::text::xid8) <> 'committed') LOOP
                since := since + 1;
            END LOOP;
        END IF;
        RETURN concat(pg_snapshot_xmin(snapshot), ' ', {SCHEMA}.left_to_do(known), ' ')
            || CASE WHEN since < upto THEN coalesce({SCHEMA}.changed(), '') ELSE '' END;
    END;
    $prove$
"""


def _resets(sequences: list[tuple[str, str, str]]) -> dict[str, str]:
    """Tests whether a sequence has moved, each with the statement that sets it back."""
    return {
        f"(SELECT last_value <> {value} OR is_called <> {called} FROM {name})": (
            f"PERFORM setval('{_literal(name)}', {value}, {called});"
        )
        for name, value, called in sequences
    }


def _where_found(tests: dict[str, str]) -> str:
    """Runs the statements of the tests that were found true."""
    return "\n".join(
        f"IF found[{place}] THEN {statement} END IF;" for place, statement in enumerate(tests.values(), 1)
    )


def _reset_sequences(sequences: list[tuple[str, str, str]]) -> str:
    """The function that sets the sequences back."""
    tests = _resets(sequences)
    return f"""
        CREATE FUNCTION {SCHEMA}.reset_sequences() RETURNS void LANGUAGE plpgsql {_IMPATIENT} AS $reset$
        {_COLUMNS_FIRST}
        DECLARE
            found boolean[] := {_array(list(tests))};
        BEGIN
            {_where_found(tests)}
        END;
        $reset$
    """


def _settle(hidden: str) -> str:
    """The function that makes the proof for the next run."""
    return f"""
        CREATE FUNCTION {SCHEMA}.settle(since bigint) RETURNS text LANGUAGE plpgsql AS $settle$
        DECLARE
            proof text := {SCHEMA}.prove(since, '{{}}', 0);
        BEGIN
            IF {hidden} THEN
                RETURN 'rows that row security hides';
            END IF;
            IF split_part(proof, ' ', 3) <> '-' THEN
                RETURN 'an open transaction';
            END IF;
            PERFORM {SCHEMA}.reset_sequences();
            RETURN regexp_replace(proof, '^[^ ]+ [^ ]+ [^ ]+ ', '');
        END;
        $settle$
    """


def _restore(
    empty: list[str],
    full: list[_Full],
    sequences: list[tuple[str, str, str]],
    afterwards: dict[str, str],
    hidden: str,
) -> str:
    """The function that puts rows and sequences back.

    It says before which transaction all is as it should be but for its own, which that is, what `left_to_do`
    says, and what it could not put back.

    Deleting few rows is ten times faster than TRUNCATE, which makes new files. It takes a session in which
    triggers and foreign keys are off (see `prepare_restore`), so that the order doesn't matter and no trigger
    writes, and that sees all rows; others are told what changed, and clone the database again.
    Objects and other sessions are only looked at when they are asked for: when `activity` tells of something
    new.
    """
    tests = {f"EXISTS (SELECT FROM ONLY {name})": f"DELETE FROM ONLY {name};" for name in empty}
    tests |= {table.differs: table.refill for table in full} | _resets(sequences)
    own = "coalesce(pg_current_xact_id_if_assigned()::text, '0')"
    return f"""
        CREATE FUNCTION {SCHEMA}.restore(objects_too boolean, known integer[]) RETURNS text
        LANGUAGE plpgsql AS $restore$
        {_COLUMNS_FIRST}
        DECLARE
            start text := pg_snapshot_xmin(pg_current_snapshot());
            seen integer[] := CASE WHEN objects_too THEN known END;
            found boolean[];
            put_back bigint;
            lost text;
            changed text;
        BEGIN
            IF {hidden} THEN
                RETURN '0 0 f - rows that row security hides';
            END IF;
            IF current_setting('session_replication_role') <> 'replica' THEN
                PERFORM {SCHEMA}.reset_sequences();
                changed := {SCHEMA}.changed();
                RETURN concat_ws(' ', start, {own}, {SCHEMA}.left_to_do(seen), coalesce(changed, ''));
            END IF;
            found := {_array(list(tests))};
            {_where_found(tests)}
            changed := coalesce(lost, {_first(afterwards)});
            IF changed IS NULL AND objects_too AND {OBJECTS_CHANGED} THEN
                changed := '{OBJECTS}';
            END IF;
            RETURN concat_ws(' ', start, {own}, {SCHEMA}.left_to_do(seen), coalesce(changed, ''));
        END;
        $restore$
    """


def _unseen(hidden: str) -> str:
    """A text that is never the same again where row security hides rows; else none."""
    return f"CASE WHEN {hidden} THEN ' ' || gen_random_uuid() ELSE '' END"


def _fingerprint(tests: dict[str, str], hidden: str) -> str:
    """The function that sums up the objects, and says so when rows differ or can't be seen."""
    return f"""
        CREATE FUNCTION {SCHEMA}.fingerprint() RETURNS text LANGUAGE plpgsql {_IMPATIENT} AS $fingerprint$
        {_COLUMNS_FIRST}
        BEGIN
            PERFORM {SCHEMA}.reset_sequences();
            RETURN {SCHEMA}.objects() || coalesce(' ' || ({_first(tests)}), '')
                || {_unseen(hidden)};
        END;
        $fingerprint$
    """
