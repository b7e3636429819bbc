"""A backfill as SQL that does the same as `Backfill`, for `alembic upgrade --sql`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_factory.migrate.backfill import (
    ATTEMPTS,
    FEWEST_ROWS,
    LOCK_TIMEOUT_SECONDS,
    LONGEST_PAUSE_SECONDS,
    MOST_PASSES,
    MOST_ROWS,
)
from rag_factory.migrate.bookkeeping import SCHEMA
from rag_factory.migrate.operations.steps import REFUSAL
from rag_factory.migrate.position import CREATE, TABLE, key_query
from rag_factory.migrate.session import quote

if TYPE_CHECKING:
    from rag_factory.migrate.backfill import Backfill

# Its statements are put together when it runs: only then the columns of the key are known, and with the
# position written into them the server plans each batch for the rows that it has.
_BLOCK = """\
CREATE SCHEMA IF NOT EXISTS {schema};
{create};
DO $rag_factory$
DECLARE
    here {table};
    names text;
    types text[];
    texts text;
    bound text;
    last text[];
    batch bigint := {batch_rows};
    changed bigint;
    still bigint;
    began timestamptz;
    attempt integer := 0;
    failed boolean;
BEGIN
    INSERT INTO {table} (name, table_name) VALUES ({name}, {target}) ON CONFLICT DO NOTHING;
    SELECT string_agg(found.name, ', '), array_agg(found.type),
           'ARRAY[' || string_agg(found.name || '::text', ', ') || ']'
    INTO names, types, texts FROM ({key}) AS found (name, type);
    IF names IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}', MESSAGE = 'There is no such key on ' || {target};
    END IF;
    LOOP
        PERFORM set_config('rag_factory.backfill', 'on', true), set_config('enable_seqscan', 'off', true),
                set_config('lock_timeout', '{lock_timeout}', true), set_config('jit', 'off', true);
        SELECT * INTO here FROM {table} WHERE {table}.name = {name} FOR UPDATE;
        EXIT WHEN here.finished_at IS NOT NULL;
        IF here.at_end THEN
            PERFORM set_config('enable_seqscan', 'on', true);
            IF {again} THEN
                UPDATE {table} SET pass = pass + 1, position = NULL, at_end = false, walked = 0, given = 0,
                    changed = 0 WHERE {table}.name = {name};
            ELSE
                UPDATE {table} SET finished_at = clock_timestamp() WHERE {table}.name = {name};
            END IF;
            COMMIT;
            CONTINUE;
        END IF;
        began := clock_timestamp();
        bound := 'true';
        IF here.position IS NOT NULL THEN
            bound := format('(%s) > (%s)', names, (SELECT string_agg(format('%L::%s', value, type), ', ')
                            FROM unnest(here.position, types) AS part (value, type)));
        END IF;
        last := NULL;
        EXECUTE format('SELECT %s FROM %s WHERE %s ORDER BY %s OFFSET %s LIMIT 1', texts, {target}, bound,
                       names, batch - 1) INTO last;
        IF last IS NOT NULL THEN
            bound := bound || format(' AND (%s) <= (%s)', names,
                     (SELECT string_agg(format('%L::%s', value, type), ', ')
                      FROM unnest(last, types) AS part (value, type)));
        END IF;
        BEGIN
            EXECUTE {update} || bound || {returning} INTO changed, still;
            UPDATE {table} AS b SET position = coalesce(last, b.position), at_end = last IS NULL,
                walked = b.walked + CASE WHEN last IS NULL THEN 0 ELSE batch END,
                given = b.given + backfill.changed, changed = b.changed + backfill.changed,
                still = b.still + backfill.still, total = b.total + backfill.changed,
                moved_at = clock_timestamp()
            FROM (SELECT changed, still) AS backfill WHERE b.name = {name};
            failed := false;
            attempt := 0;
        EXCEPTION WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
            failed := true;
            attempt := attempt + 1;
            IF attempt = {attempts} THEN
                RAISE;
            END IF;
        END;
        COMMIT;
        IF failed THEN
            batch := greatest(1, batch / 2);
            PERFORM pg_sleep(least({longest_pause}, {lock_timeout_seconds} * 2 ^ least(10, attempt - 1))
                             * (0.5 + random() / 2));
        ELSE
            batch := least({most}, greatest({fewest}, batch * least(2, greatest(0.5, {batch_seconds}
                     / greatest(0.001, extract(epoch FROM clock_timestamp() - began)))))::bigint);
            PERFORM pg_sleep({pause});
        END IF;
        COMMIT;
    END LOOP;
END
$rag_factory$"""


def backfill_block(backfill: Backfill) -> str:
    """The statements that run the backfill, outside of a transaction. They don't wait for replicas."""
    where = backfill.where
    left = f"EXISTS (SELECT FROM {backfill.table} WHERE {where})"
    passes = f"here.still = 0 AND here.changed > 0 AND here.pass < {MOST_PASSES}"
    update = f"WITH changed AS (UPDATE {backfill.table} SET {backfill.change} WHERE " + (
        f"({where}) AND " if where else ""
    )
    returning = (
        f" RETURNING ({where or 'false'}) IS TRUE AS still) "
        "SELECT count(*), count(*) FILTER (WHERE still) FROM changed"
    )
    return _BLOCK.format(
        schema=SCHEMA,
        create=CREATE.strip(),
        table=TABLE,
        batch_rows=backfill.batch_rows,
        name=quote(backfill.name),
        target=quote(backfill.table),
        key=key_query(backfill.table, backfill.key),
        refusal=REFUSAL,
        again=f"{passes} AND {left}" if where else "false",
        update=quote(update),
        returning=quote(returning),
        attempts=ATTEMPTS,
        lock_timeout=f"{LOCK_TIMEOUT_SECONDS:g}s",
        lock_timeout_seconds=LOCK_TIMEOUT_SECONDS,
        longest_pause=LONGEST_PAUSE_SECONDS,
        most=MOST_ROWS,
        fewest=FEWEST_ROWS,
        batch_seconds=backfill.batch_seconds,
        pause=backfill.pause_seconds,
    )
