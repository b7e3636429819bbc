"""op.backfill: rows changed batch by batch, as part of a revision."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alembic.operations import MigrateOperation, Operations

from rag_factory.migrate.backfill import Backfill
from rag_factory.migrate.operations.steps import Steps, qualified
from rag_factory.migrate.operations.written import backfill_block
from rag_factory.migrate.position import TABLE
from rag_factory.migrate.session import Session, quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alembic.runtime.migration import MigrationContext


@Operations.register_operation("backfill")
class BackfillOp(MigrateOperation):
    """Rows that are changed while others read and write."""

    def __init__(self, backfill: Backfill) -> None:
        self.work = backfill

    @classmethod
    def backfill(
        cls,
        operations: Operations,
        table_name: str,
        set_: str,
        *,
        where: str | None = None,
        key: Sequence[str] | None = None,
        schema: str | None = None,
        batch_rows: int = 1000,
        pause_seconds: float = 0.0,
        max_replica_lag_seconds: float | None = 10.0,
        name: str | None = None,
    ) -> None:
        """Change all rows, batch by batch in the order of a key, each batch committed.

        set_, where: as in an UPDATE. where: best what the change ends, such as `new IS NULL`: then the table
        is gone through until no row is left. Without it, each row that is there is changed exactly once.
        Rows that come after that must be right by themselves: by a default or a trigger, a revision before.
        A trigger sees the setting rag_factory.backfill = 'on' meanwhile.
        key: the columns of a unique index, all NOT NULL; the primary key's unless given.
        batch_rows: of the first batch; then as many as take a fifth of a second.
        pause_seconds: between batches. max_replica_lag_seconds: wait while a replica is further behind.
        name: under which the position is kept, if two of a revision would be the same.
        Repeatable: interrupted at any moment, the next run goes on behind the last batch that was committed.
        The way back is none: what was filled in goes with its column, or is another backfill.
        """
        table = qualified(table_name, schema)
        digest = hashlib.sha256("\0".join((set_, where or "")).encode()).hexdigest()[:12]
        operations.invoke(
            cls(
                Backfill(
                    name=name or f"{table} {digest}",
                    table=table,
                    change=set_,
                    where=where,
                    key=key,
                    batch_rows=batch_rows,
                    pause_seconds=pause_seconds,
                    max_replica_lag_seconds=max_replica_lag_seconds,
                )
            )
        )


@Operations.implementation_for(BackfillOp)
def _backfill(operations: Operations, operation: BackfillOp) -> None:
    backfill = operation.work
    steps = Steps(operations, f"Backfilling {backfill.table}", backfill.table)
    with steps.begun():
        if steps.offline:
            steps.write(backfill_block(backfill))
        else:
            changed = replace(backfill, on_progress=steps.on_progress).run(steps.session)
            steps.notice(f"backfilled {backfill.table}: {changed} row{'' if changed == 1 else 's'} changed")
    _forget_with_revision(operations.migration_context, backfill.name)


def _forget_with_revision(context: MigrationContext, name: str) -> None:
    """Forget the position in the transaction that notes the revision as applied.

    Not before: the rest of the revision may fail, and a finished backfill must not run twice. Not later: the
    revision may be taken back and applied again, and must find it undone.
    """
    statement = f"DELETE FROM {TABLE} WHERE name = {quote(name)}"

    def forget(ctx: MigrationContext, **_: Any) -> None:
        context.on_version_apply_callbacks = tuple(
            callback for callback in context.on_version_apply_callbacks if callback is not forget
        )
        if ctx.as_sql or ctx.connection is None:
            ctx.impl.static_output(f"{statement};")
        else:
            Session.of_sqlalchemy(ctx.connection).execute(statement)

    context.on_version_apply_callbacks = (*context.on_version_apply_callbacks, forget)
