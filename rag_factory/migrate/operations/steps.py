"""The steps that an online operation is made of: run one by one, or written as SQL that does the same.

Each step is a transaction of its own. What it needs to know of the database is a condition in SQL, asked at
every attempt: so an operation is written once, and repeated after a crash it does what is left.
"""

from __future__ import annotations

import textwrap
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError

from rag_factory.errors import RagFactoryError, UsageError
from rag_factory.migrate.retry import Patience
from rag_factory.migrate.session import (
    ATTEMPTS,
    DATABASE_ERRORS,
    DEFAULT_LOCK_TIMEOUT_SECONDS,
    MADE_MEANWHILE,
    PASSING,
    Session,
    log,
    quote,
    sqlstate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import ClauseElement

    from rag_factory.migrate.progress import Progress

# Its own parameter style: with the driver's, a % in a condition would be doubled.
DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy's own
_PREPARER = DIALECT.identifier_preparer
# What our own DO blocks raise: a sentence for the user, with its hint.
REFUSAL = "RF001"
# The name of an empty table that they make and undo, to see what the server makes of a definition.
PROBE = "rag_factory_probe"
LONGEST_PAUSE_SECONDS = 10.0
# A table, a column, a type or a schema that isn't there.
_MISSING = frozenset({"42P01", "42703", "42704", "3F000"})
_CHECK_VIOLATED, _FOREIGN_KEY_VIOLATED, _UNIQUE_VIOLATED = "23514", "23503", "23505"
_OFFLINE_STEP = """\
DO $rag_factory$
DECLARE
    attempt integer := 0;
BEGIN
    LOOP
        BEGIN
{body}
            EXIT;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            attempt := attempt + 1;
            IF attempt = {attempts} THEN
                RAISE;
            END IF;
            RAISE NOTICE 'no lock yet, attempt % of {attempts}', attempt;
            PERFORM pg_sleep(least(10, extract(epoch FROM current_setting('lock_timeout')::interval)
                                       * least(8, 2 ^ (attempt - 1))) * (0.5 + random() / 2));
        END;
    END LOOP;
END
$rag_factory$"""


def name_of(name: str) -> str:
    """A name as SQL wants it: quoted where it must be."""
    return str(_PREPARER.quote(name))


def qualified(name: str, schema: str | None) -> str:
    """A name with its schema, if one is given, as SQL wants it."""
    return f"{name_of(schema)}.{name_of(name)}" if schema else name_of(name)


def unquoted(name: str) -> str:
    """The name itself, of one as in SQL."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def refuse_parameters(what: str, *elements: ClauseElement) -> None:
    """Refuse SQL text with :x in it: SQLAlchemy would write NULL there, and make something else of it.

    what: whose text it is, for the message. Raises RagFactoryError.
    """
    for element in elements:
        for key, value in element.compile(dialect=DIALECT).params.items():
            if value is None:
                raise RagFactoryError(
                    f"{what} has :{key}, which SQLAlchemy reads as a parameter.",
                    fix=rf"If a colon is meant, write it as \:{key} in a raw string: r'…'",
                )


class Steps:
    """What one operation does to its tables; they are named as in SQL."""

    def __init__(self, operations: Operations, what: str, *tables: str) -> None:
        context = operations.migration_context
        self.what = what
        self.tables = tables
        self.context: MigrationContext = context
        self.offline = context.as_sql
        attributes: Mapping[str, Any] = context.config.attributes if context.config else {}
        self.notice: Callable[[str], None] = attributes.get("on_notice") or log.info
        self.on_progress: Callable[[Progress], None] | None = attributes.get("on_progress")
        self._lock_timeout_seconds = DEFAULT_LOCK_TIMEOUT_SECONDS

    @property
    def session(self) -> Session:
        """The session that the steps run on."""
        assert self.context.connection is not None  # noqa: S101 - offline has none, and doesn't ask
        return Session.of_sqlalchemy(self.context.connection, notice=self.notice)

    @contextmanager
    def begun(self, fix: str | None = None) -> Iterator[Steps]:
        """Commit what came before; each step of the body commits by itself, in time limits fit for it.

        A step's wait for a lock is limited as the session says, or else to 5 seconds; how long it then reads
        the table isn't. fix: what to do when the table's rows are against it.
        """
        with _committing(self.context):
            if self.offline:
                with self._offline_setting("statement_timeout", "0"), self._offline_lock_timeout():
                    yield self
                return
            session = self.session
            limit = session.setting_seconds("lock_timeout") or DEFAULT_LOCK_TIMEOUT_SECONDS
            self._lock_timeout_seconds = limit
            limits = {"statement_timeout": "0", "lock_timeout": f"{round(limit * 1000)}ms"}
            with session.ended_with_its_client(), session.settings(limits), self._explained(fix):
                yield self

    def change(self, statement: str, *, only_if: str | None = None, words: str | None = None) -> None:
        """Run a statement that needs a lock for a moment, or one that holds up nobody; again if need be.

        only_if: a condition in SQL; where it doesn't hold, the step is done already.
        """
        if self.offline:
            condition = f"IF {only_if} THEN\n    {statement};\nEND IF;" if only_if else f"{statement};"
            self.write(_OFFLINE_STEP.format(body=textwrap.indent(condition, " " * 12), attempts=ATTEMPTS))
            return
        session = self.session

        def attempt() -> None:
            if only_if is None or session.one(f"SELECT {only_if}"):
                session.execute(statement)

        self._retry(words or self.what, attempt)

    def concurrently(self, statement: str, settings: Mapping[str, str] | None = None) -> None:
        """Run a statement whose wait for others holds up nobody: without a limit on it."""
        if self.offline:
            with self._offline_settings({"lock_timeout": "0", **(settings or {})}):
                self.write(statement)
            return
        with self.session.settings({"lock_timeout": "0", **(settings or {})}):
            self.session.execute(statement)

    def check(self, body: str) -> None:
        """Run a plpgsql block, the declarations included; what it refuses it raises with SQLSTATE RF001."""
        block = f"DO $rag_factory$\n{textwrap.dedent(body).strip()}\n$rag_factory$"
        if self.offline:
            self.write(block)
        else:
            self._retry(self.what, lambda: self.session.execute(block))

    def _retry(self, words: str, work: Callable[[], Any]) -> None:
        # Others get through in the pauses: the first is about as long as the wait before it held them up.
        first = self._lock_timeout_seconds
        patience = Patience(
            tries=ATTEMPTS,
            first_pause_seconds=first,
            longest_pause_seconds=min(LONGEST_PAUSE_SECONDS, 8 * first),
        )
        self.session.retry(words, self.tables, work, patience, passing=PASSING | MADE_MEANWHILE)

    def write(self, statement: str) -> None:
        """Write a statement of offline SQL."""
        self.context.impl.static_output(f"{statement};")

    @contextmanager
    def _offline_settings(self, values: Mapping[str, str]) -> Iterator[None]:
        saved = ",\n       ".join(
            f"set_config('rag_factory.{name}', current_setting('{name}'), false), "
            f"set_config('{name}', {quote(value)}, false)"
            for name, value in values.items()
        )
        self.write(f"SELECT {saved}")
        yield
        restored = ", ".join(
            f"set_config('{name}', current_setting('rag_factory.{name}'), false)" for name in values
        )
        self.write(f"SELECT {restored}")

    def _offline_setting(self, name: str, value: str) -> Any:
        return self._offline_settings({name: value})

    @contextmanager
    def _offline_lock_timeout(self) -> Iterator[None]:
        self.write(
            "SELECT set_config('rag_factory.outer_lock_timeout', current_setting('lock_timeout'), false),\n"
            "       set_config('lock_timeout', CASE current_setting('lock_timeout') WHEN '0' THEN "
            f"'{DEFAULT_LOCK_TIMEOUT_SECONDS:g}s' ELSE current_setting('lock_timeout') END, false)"
        )
        yield
        self.write(
            "SELECT set_config('lock_timeout', current_setting('rag_factory.outer_lock_timeout'), false)"
        )

    @contextmanager
    def _explained(self, fix: str | None) -> Iterator[None]:
        """Turn what our own blocks refuse, and what rows are against, into errors that say what to do."""
        try:
            yield
        except UsageError as error:
            # The mistake is in the revision, not in the command line.
            raise RagFactoryError(f"{self.what}: {error.what}", fix=error.fix) from error
        except DATABASE_ERRORS as error:
            state = sqlstate(error)
            diagnosis = getattr(getattr(error, "orig", None) or error, "diag", None)
            said = getattr(diagnosis, "message_primary", None) or str(error).splitlines()[0]
            if state == REFUSAL:
                raise RagFactoryError(said, fix=getattr(diagnosis, "message_hint", None)) from error
            if state in _MISSING:
                raise RagFactoryError(
                    f"{self.what}: {said}.", fix="Correct the name, or make it in a revision before this one."
                ) from error
            if state in {_CHECK_VIOLATED, _FOREIGN_KEY_VIOLATED, _UNIQUE_VIOLATED}:
                raise RagFactoryError(f"{self.what}: {said}.", fix=fix) from error
            raise


@contextmanager
def _committing(context: MigrationContext) -> Iterator[None]:
    """Leave the transaction for the body, and let an error in it be seen for what it is.

    After a lost connection or Ctrl-C, Alembic's own way back fails, and its error would hide the first one.
    """
    first: BaseException | None = None
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(context.autocommit_block())
            except AssertionError as error:
                # So Alembic says that the transaction is not its own.
                raise RagFactoryError(
                    "An online operation commits as it goes, and can't in a transaction that the caller of "
                    "Alembic has begun.",
                    fix="Let env.py begin it, by context.begin_transaction().",
                ) from error
            try:
                yield
            except BaseException as error:
                first = error
                raise
    except SQLAlchemyError:
        if first is not None:
            raise first from None
        raise
