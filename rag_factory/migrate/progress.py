"""How far long work is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """done, total: in the work's own unit; total is None while it can't be told.

    rows_per_second, eta_seconds: None where they mean nothing.
    """

    what: str
    done: int
    total: int | None
    rows_per_second: float | None = None
    eta_seconds: float | None = None
