"""The steps of `db.reembed`, and what each says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rag_factory.errors import BehindError, UsageError
from rag_factory.tasks.output import progress_bar, say, show_columns, show_json

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import psycopg

    from rag_factory.database.embedding import Embedder
    from rag_factory.migrate.reembed.record import Reembedding
    from rag_factory.migrate.reembed.short_lock import ShortLock
    from rag_factory.migrate.reembed.table import Table
    from rag_factory.tasks.workspace import Workspace

    Session = psycopg.Connection[Any]

DROP_OLD, GIVE_UP = "--drop-old", "--give-up"
# Long enough for the server to notice that a run was killed.
LOCK_PATIENCE_SECONDS = 3.0


class Run:
    """One call of db.reembed, with what it was given; a method a step."""

    def __init__(
        self,
        work: Workspace,
        column: str | None,
        embedder: str | None,
        batch_rows: int,
        memory: str | None,
        wait_seconds: float,
    ) -> None:
        self._work = work
        self._column = column
        self._embedder_name = embedder
        self._batch_rows = batch_rows
        self._memory = memory
        self._wait_seconds = wait_seconds

    def begin(self, text_column: str | None, type_name: str | None) -> None:
        """Begin, and go on."""
        from rag_factory.migrate.reembed.steps import begin
        from rag_factory.migrate.reembed.table import split_name

        if not (self._column and text_column and self._embedder_name):
            raise UsageError("--begin needs --column, --text-column and --embedder.")
        embedder = self._load(self._embedder_name)
        with self._open() as session:
            name = split_name(session, self._column)
            with self._alone():
                change, table = begin(
                    session,
                    name,
                    text_column,
                    embedder,
                    self._lock(),
                    embedder_as_given=self._embedder_name,
                    type_name=type_name,
                )
            for left in table.left:
                say(f"{left} has no counterpart: it stays with the old embeddings")
            self._go_on(session, change, table, embedder)

    def go_on(self) -> None:
        """Do what is left to do before, or after, the cut-over."""
        with self._open() as session:
            change, table = self._read(session)
            self._go_on(session, change, table, self._embedder(change))

    def cut_over(self) -> None:
        """Compute what is missing, swap, and compute what came in the moment before."""
        from rag_factory.migrate.reembed import steps
        from rag_factory.migrate.reembed.index import missing_indexes

        with self._open() as session:
            change, table = self._read(session)
            embedder = self._embedder(change)
            if change.phase == "cut over":
                say(f"{change.label} is cut over already")
            else:
                if missing := missing_indexes(session, change):
                    names = ", ".join(change.index_name(plan) for plan in missing)
                    raise BehindError(
                        f"{change.label} is not ready: {names} is not built. Nothing was changed.",
                        fix="First: invoke db.reembed",
                    )
                self._fill(session, change, table, embedder)
                with self._alone():
                    change = steps.cut_over(session, change, self._lock())
                say(f"{change.label} now has the embeddings of {change.embedder_name}")
            self._fill(session, change, table, embedder)

    def go_back(self) -> None:
        """Swap back. With an embedder, first compute the old embeddings of what came meanwhile."""
        from rag_factory.migrate.reembed import steps

        with self._open() as session:
            change, table = self._read(session)
            if self._embedder_name:
                self._fill(session, change, table, self._load(self._embedder_name), for_old=True)
            if change.phase == "filling":
                say(f"{change.label} has its old embeddings; nothing to swap")
                return
            with self._alone():
                change = steps.go_back(session, change, self._lock())
            say(f"{change.label} has its old embeddings again")
            if not self._embedder_name:
                say(
                    "What came meanwhile has none of the old model. Compute them: "
                    "invoke db.reembed --back --embedder package.module:OldModel"
                )

    def end(self, step: str, *, yes: bool, database: str | None) -> None:
        """Drop one of the two columns."""
        from rag_factory.migrate.reembed import steps

        with self._open() as session:
            change, _ = self._read(session)
            if step == DROP_OLD:
                steps.require_phase(change, "cut over")
                dropped, drop = change.old_column, steps.drop_old
            else:
                steps.require_phase(change, "filling")
                dropped, drop = change.new_column, steps.give_up
            place = self._work.target.place
            effect = f"This drops {change.table_name}.{dropped} in {place}, with its indexes"
            self._work.confirm(effect, yes=yes, database=database)
            with self._alone():
                drop(session, change, self._lock())
        say(f"dropped {change.table_name}.{dropped}")
        if change.was_not_null and step == DROP_OLD:
            say(f"{change.label} was NOT NULL and no longer is; a revision can make it so again")

    def show_status(self, *, json: bool) -> None:
        """Show how far the change is, without waiting for the one who works on it."""
        from rag_factory.database.driver import connect
        from rag_factory.migrate.reembed import record
        from rag_factory.migrate.reembed.status import describe

        url = self._work.target.url
        with connect(url, read_only=True) as session:
            names = self._name(session)
            found = [record.read_one(session, names)] if names else record.read_all(session)
            described = [describe(session, change) for change in found]
        if json:
            show_json(described)
        elif not described:
            say("No change of embedding model is under way")
        for each in () if json else described:
            show_columns((name.replace("_", " "), _as_text(value)) for name, value in each.items())

    def _go_on(self, session: Session, change: Reembedding, table: Table, embedder: Embedder) -> None:
        from rag_factory.migrate.reembed.index import build_indexes, build_waiting_index
        from rag_factory.migrate.reembed.recall import measure_recall

        build_waiting_index(session, change, table)
        self._fill(session, change, table, embedder)
        built = build_indexes(
            session, change, memory=self._memory, on_build=lambda name: say(f"building {name}")
        )
        if built:
            # What came while it was built.
            self._fill(session, change, table, embedder)
        if change.phase == "cut over":
            say(f"{change.label} is cut over. To end: invoke db.reembed --drop-old")
            return
        if built or change.recall is None:
            say("measuring the recall")
            _say_recall(vars(measure_recall(session, change, table)))
        say("ready: invoke db.reembed --cut-over")

    def _fill(
        self,
        session: Session,
        change: Reembedding,
        table: Table,
        embedder: Embedder,
        *,
        for_old: bool = False,
    ) -> None:
        from rag_factory.migrate.reembed.fill import Filler

        filler = Filler(session, change, table, embedder, batch_rows=self._batch_rows, for_old=for_old)
        waiting = filler.count()
        if not waiting:
            return
        try:
            with progress_bar("embeddings", waiting) as advance:
                written = filler.run(advance)
        except KeyboardInterrupt:
            say("What is computed stays. To go on: invoke db.reembed")
            raise
        say(f"computed {written} embeddings with {embedder.name}")

    def _open(self) -> AbstractContextManager[Session]:
        from rag_factory.migrate.reembed.session import open_session

        return open_session(self._work.target, wait_seconds=LOCK_PATIENCE_SECONDS)

    def _alone(self) -> AbstractContextManager[object]:
        """Keep migrators away while the schema changes."""
        from rag_factory.migrate.lock import migrator_lock

        target, project = self._work.target, self._work.project
        return migrator_lock(target, project, wait_seconds=self._wait_seconds, on_wait=say)

    def _lock(self) -> ShortLock:
        from rag_factory.migrate.reembed.short_lock import ShortLock

        return ShortLock(
            self._work.config.db_lock_timeout_seconds,
            self._wait_seconds,
            say,
        )

    def _name(self, session: Session) -> tuple[str, str, str] | None:
        from rag_factory.migrate.reembed.table import split_name

        return split_name(session, self._column) if self._column else None

    def _read(self, session: Session) -> tuple[Reembedding, Table]:
        from rag_factory.migrate.reembed import record
        from rag_factory.migrate.reembed.table import read_table

        change = record.read_one(session, self._name(session))
        name = (change.table_schema, change.table_name, change.column_name)
        return change, read_table(session, name, change.text_column, begun=True)

    def _embedder(self, change: Reembedding) -> Embedder:
        """The new model, which must be the one that the change was begun with."""
        embedder = self._load(self._embedder_name or change.embedder)
        if embedder.name != change.embedder_name:
            raise UsageError(
                f"The embedder is {embedder.name}, and {change.label} was begun with {change.embedder_name}.",
                fix="Go on with that one, or give the change up: invoke db.reembed --give-up",
            )
        return embedder

    def _load(self, name: str) -> Embedder:
        from rag_factory.database.embedding import load_embedder

        return load_embedder(name, f"The embedder is {name}")


def _say_recall(recall: dict[str, Any]) -> None:
    """Tell what was measured: the part of the nearest that is found."""
    if not recall["rows"]:
        say("recall@10 not measured: an exact scan takes too long, or there are too few rows")
        return
    old = "no index" if recall["old"] is None else f"{recall['old']:.3f}"
    say(
        f"recall@10 over {recall['rows']} rows: new {recall['new']:.3f}, old {old}; "
        f"the two models share {recall['shared']:.0%} of the nearest"
    )


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_as_text(each)}" for name, each in value.items())
    return f"{value:.3f}" if isinstance(value, float) else "none" if value is None else str(value)
