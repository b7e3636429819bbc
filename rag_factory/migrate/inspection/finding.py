"""What a check of the doctor is, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rag_factory.migrate.bookkeeping import OWN_SCHEMAS

# left-over: half-made by an earlier run; warning: it hurts or will; note: to look at when there is time.
Severity = Literal["left-over", "warning", "note"]
# The condition for the project's own schemas, where `n` is pg_namespace.
OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname NOT IN ({})".format(
    ", ".join(f"'{name}'" for name in OWN_SCHEMAS)
)


@dataclass(frozen=True)
class Limits:
    """From where on something is told. Shares are of 1; a query reads them by name."""

    transaction_seconds: float = 300
    idle_in_transaction_seconds: float = 60
    prepared_seconds: float = 300
    sequence_share: float = 0.7
    dead_share: float = 0.2
    dead_rows: int = 1000
    bloat_factor: float = 2
    # A small index is not worth a word, whatever is wrong with its size.
    index_bytes: int = 10 * 1024 * 1024
    unanalyzed_rows: int = 10_000
    slot_bytes: int = 64 * 1024 * 1024
    wraparound_share: float = 0.4
    minimum_pgvector: str = "0.8.4"


@dataclass(frozen=True)
class Check:
    """One question to the catalog.

    why: why its findings matter, in half a line.
    query: gives a row for each: the object, what was measured, the fix as a command, and whether that is a
    statement which is safe to run on a table in use. It takes no lock on a table and reads the limits as
    parameters, so a percent sign in it is doubled.
    """

    name: str
    severity: Severity
    why: str
    query: str


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. safe: the fix is a statement for `--fix` to run."""

    severity: Severity
    check: str
    where: str
    value: str
    why: str
    fix: str
    safe: bool
