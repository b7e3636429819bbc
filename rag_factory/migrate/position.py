"""Where a backfill is: a row of rag_factory.backfills, which moves on together with the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.errors import UsageError
from rag_factory.migrate.bookkeeping import SCHEMA
from rag_factory.migrate.session import quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.session import Session

TABLE = f"{SCHEMA}.backfills"
# position: the key of the last row done, as text. walked, given, changed, still: rows of this pass that were
# gone through, that got values, that were changed, and for which `where` holds after that.
CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    name text PRIMARY KEY,
    table_name text NOT NULL,
    pass integer NOT NULL DEFAULT 1,
    position text[],
    at_end boolean NOT NULL DEFAULT false,
    walked bigint NOT NULL DEFAULT 0,
    given bigint NOT NULL DEFAULT 0,
    changed bigint NOT NULL DEFAULT 0,
    still bigint NOT NULL DEFAULT 0,
    total bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    moved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz
)"""
_COLUMNS = "pass, position, at_end, walked, given, changed, still, total, finished_at IS NOT NULL"
_KEY = """
    SELECT {table} || '.' || quote_ident(attname), format_type(atttypid, atttypmod)
    FROM (SELECT indrelid, indkey::int2[] AS columns, indnkeyatts FROM pg_index
          WHERE indrelid = {table}::regclass AND indisvalid AND indisunique AND indimmediate
            AND indpred IS NULL AND indexprs IS NULL AND {wanted}
          ORDER BY indisprimary DESC, indexrelid LIMIT 1) AS index
    CROSS JOIN LATERAL unnest(columns[0:indnkeyatts - 1]) WITH ORDINALITY AS part (number, place)
    JOIN pg_attribute ON attrelid = indrelid AND attnum = number
    ORDER BY place
"""
# A composite key is compared as a row, which follows the index only where all its columns ascend.
_GIVEN = """
    0 = ALL (indoption::int2[]) AND (
        SELECT bool_and(attnotnull) AND array_agg(attname::text ORDER BY attname::text)
                                        = ARRAY(SELECT unnest(ARRAY[{names}]) ORDER BY 1)
        FROM pg_attribute
        WHERE attrelid = indrelid AND attnum = ANY ((indkey::int2[])[0:indnkeyatts - 1]))"""


_BEGUN = f"""
    SELECT format('%s: %s row%s changed so far', table_name, total, CASE total WHEN 1 THEN '' ELSE 's' END),
           format('DELETE FROM {TABLE} WHERE name = %L', name)
    FROM {TABLE} WHERE finished_at IS NULL AND total > 0 ORDER BY started_at"""


@dataclass(frozen=True)
class State:
    """A row of the table. number: of the pass, from 1; position: None at its beginning."""

    number: int
    position: list[str] | None
    at_end: bool
    walked: int
    given: int
    changed: int
    still: int
    total: int
    finished: bool


@dataclass(frozen=True)
class Key:
    """The columns that give the order, and their types.

    names: as in SQL, with the table: ORDER BY would take a bare one for what is selected under that name.
    """

    names: Sequence[str]
    types: Sequence[str]

    @property
    def columns(self) -> str:
        """The columns, as in ORDER BY."""
        return ", ".join(self.names)

    @property
    def texts(self) -> str:
        """The columns as text, which holds any value of any type."""
        return ", ".join(f"{name}::text" for name in self.names)

    def after(self, position: Sequence[str] | None) -> str:
        """The rows behind this one; None: all."""
        return f"({self.columns}) > ({self._literals(position)})" if position else "true"

    def until(self, position: Sequence[str]) -> str:
        """The rows up to this one."""
        return f"({self.columns}) <= ({self._literals(position)})"

    def _literals(self, position: Sequence[str]) -> str:
        return ", ".join(f"{quote(text)}::{type_}" for text, type_ in zip(position, self.types, strict=True))


def find_key(session: Session, table: str, names: Sequence[str] | None) -> Key:
    """The key to go by: the primary key, or a unique index on these columns, all NOT NULL.

    Raises UsageError: there is none.
    """
    rows = session.execute(key_query(table, names))
    if not rows:
        what = "primary key" if names is None else f"unique index on {', '.join(names)} alone, all NOT NULL"
        raise UsageError(
            f"{table} has no {what} to go through it by.",
            fix="Name the columns of a unique index, all NOT NULL, as key=[…].",
        )
    return Key([name for name, _ in rows], [type_ for _, type_ in rows])


def key_query(table: str, names: Sequence[str] | None) -> str:
    """The query for the columns of the key and their types, in the index's order."""
    wanted = "indisprimary" if names is None else _GIVEN.format(names=", ".join(map(quote, names)))
    return _KEY.format(table=quote(table), wanted=wanted)


def read_state(session: Session, name: str) -> State:
    """Read where the backfill is now."""
    return State(*session.execute(f"SELECT {_COLUMNS} FROM {TABLE} WHERE name = {quote(name)}")[0])


def find_begun(session: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """The backfills that have changed rows and aren't done: each in words, and the SQL that forgets it.

    session: in autocommit mode.
    """
    try:
        return [(words, forget) for words, forget in session.execute(_BEGUN.encode())]
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
        return []  # there never was one, or this role may not know of it


@dataclass(frozen=True)
class Position:
    """The row of one backfill."""

    name: str

    def open(self, session: Session, table: str) -> State:
        """Find the row, or make it."""
        if session.one(f"SELECT to_regclass('{TABLE}')") is None:
            session.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            session.execute(CREATE)
        session.execute(
            f"INSERT INTO {TABLE} (name, table_name) VALUES ({quote(self.name)}, {quote(table)}) "
            "ON CONFLICT DO NOTHING"
        )
        return read_state(session, self.name)

    def moving(
        self,
        state: State,
        update: str | None,
        until: Sequence[str] | None,
        *,
        still: str | None,
        walked: int,
        given: int | None,
    ) -> str:
        """The statement that runs the update and moves on behind `until`, or to the end of the pass.

        It first locks the row, if it is still as in `state`: the session of a killed run may be at work on
        the same batch. still: the condition to count changed rows by that it still holds for.
        Returns the new state, or no row when it was moved by another session.
        """
        name = quote(self.name)
        here = f"{_is_at(state)} AND name = {name}"
        changed = (
            f"{update} AND EXISTS (SELECT FROM rf_here) RETURNING ({still or 'false'}) IS TRUE AS rf_still"
            if update
            else "SELECT false AS rf_still WHERE false"
        )
        position = f"ARRAY[{', '.join(map(quote, until))}]::text[]" if until else "position"
        return f"""
            WITH rf_here AS (SELECT FROM {TABLE} WHERE {here} FOR UPDATE),
            rf_changed AS ({changed}),
            rf_counted AS (
                SELECT count(*) AS count, count(*) FILTER (WHERE rf_still) AS still FROM rf_changed)
            UPDATE {TABLE} SET position = {position}, at_end = {"false" if until else "true"},
                walked = walked + {walked}, changed = changed + rf_counted.count,
                given = given + {"rf_counted.count" if given is None else given},
                still = backfills.still + rf_counted.still, total = total + rf_counted.count,
                moved_at = clock_timestamp()
            FROM rf_counted WHERE {here} AND EXISTS (SELECT FROM rf_here)
            RETURNING pass, position, at_end, walked, given, changed, backfills.still, total, false"""

    def begin_pass(self, session: Session) -> State:
        """Go back to the beginning."""
        return self._update(
            session,
            "pass = pass + 1, position = NULL, at_end = false, walked = 0, given = 0, changed = 0",
        )

    def end(self, session: Session) -> State:
        """Write down that all is done."""
        return self._update(session, "finished_at = clock_timestamp()")

    def forget(self, session: Session) -> None:
        """Take the row away, if there is one."""
        if session.one(f"SELECT to_regclass('{TABLE}')") is not None:
            session.execute(f"DELETE FROM {TABLE} WHERE name = {quote(self.name)}")

    def _update(self, session: Session, change: str) -> State:
        session.execute(
            f"UPDATE {TABLE} SET {change} WHERE name = {quote(self.name)} AND at_end AND finished_at IS NULL"
        )
        return read_state(session, self.name)


def _is_at(state: State) -> str:
    position = state.position
    at = f"= ARRAY[{', '.join(map(quote, position))}]::text[]" if position else "IS NULL"
    return f"pass = {state.number} AND NOT at_end AND position {at}"
