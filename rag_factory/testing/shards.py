"""Shards: a suite split over several machines, each test in exactly one part."""

from __future__ import annotations

import hashlib
import heapq
import json
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

DEFAULT_SECONDS = 0.1


@dataclass(frozen=True)
class Shard:
    """One part of several. index: 1 to total."""

    index: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `2/4`. Raises UsageError: it isn't such a pair."""
        index, slash, total = text.partition("/")
        if slash and index.isascii() and index.isdigit() and total.isascii() and total.isdigit():
            shard = cls(int(index), int(total))
            if 1 <= shard.index <= shard.total:
                return shard
        raise UsageError(
            f"--shard is {text!r}: it must be I/N, with I from 1 to N.",
            fix="For the second of four: --shard 2/4",
        )

    def __str__(self) -> str:
        return f"{self.index}/{self.total}"


def assign(ids: Iterable[str], total: int, durations: Mapping[str, float]) -> dict[str, int]:
    """Give each test its shard, 1 to total.

    durations: seconds by test id; tests without one count as the median. The longest go first, each to the
    shard with the least to do. Nothing else counts than the set of ids and the durations: not the order of
    collection, and no random numbers; so all machines of a checkout agree.
    """
    known = {id_: seconds for id_, seconds in durations.items() if _is_duration(seconds)}
    present = [known[id_] for id_ in set(ids) if id_ in known]
    typical = median(present) if present else DEFAULT_SECONDS
    weights = {id_: known.get(id_, typical) for id_ in ids}
    loads = [(0.0, index) for index in range(1, total + 1)]
    shards = {}
    for id_ in sorted(weights, key=lambda id_: (-weights[id_], _hash(id_), id_)):
        load, index = heapq.heappop(loads)
        shards[id_] = index
        # A test that takes no time still takes a place: otherwise one shard would get all of those.
        heapq.heappush(loads, (load + max(weights[id_], 1e-6), index))
    return shards


def starts_with(test: str, chosen: str) -> bool:
    """Whether a test is the one that is chosen, or in the folder, file or class."""
    return test.startswith(chosen) and (
        not chosen or test[len(chosen) : len(chosen) + 1] in ("", "/", ":", "[")
    )


def read_durations(path: Path) -> dict[str, float]:
    """Read recorded durations; a file that is missing or broken holds none."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(recorded, dict):
        return {}
    return {id_: float(seconds) for id_, seconds in recorded.items() if _is_duration(seconds)}


def write_durations(path: Path, durations: Mapping[str, float]) -> None:
    """Write durations whole or not at all, in milliseconds' precision, so that few lines change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    rounded = {id_: round(seconds, 3) for id_, seconds in sorted(durations.items())}
    part.write_text(json.dumps(rounded, indent=0) + "\n", encoding="utf-8")
    part.replace(path)


def _is_duration(seconds: object) -> bool:
    return isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 <= seconds < 1e6  # noqa: PLR2004


def _hash(id_: str) -> str:
    return hashlib.sha256(id_.encode("utf-8", "surrogatepass")).hexdigest()
