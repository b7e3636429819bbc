"""What lint has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong. path: from the project's root, with slashes. line: from 1.

    message: what is wrong and why it matters. fix: the safe way.
    """

    path: str
    line: int
    rule: str
    message: str
    fix: str
