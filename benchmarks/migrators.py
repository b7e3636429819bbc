"""Start twenty migrators at once, as twenty containers of a release do, and hold their time against one's.

Two kinds of pending revisions: a change of a table of a million rows (an online index, a NOT NULL, a
backfill), and three that take almost nothing, where the start of twenty interpreters is all there is. Plain
Alembic gets the same changes as one writes them at first. Run it: uv run python -m benchmarks.migrators
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks.places import in_memory, temporary_folder
from benchmarks.stalls import CHANGES, PACKAGES, copied_tables, laboratory, write_project
from benchmarks.timing import (
    Comparison,
    Figure,
    describe_machine,
    inherited_environment,
    parse_arguments,
    race,
    report,
)
from rag_factory.server import find_binaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl

MIGRATORS = 20
TARGET = 1.5
# A round of the large change takes minutes, most of them Alembic's.
LARGE_ROUNDS_PART = 7
LARGE = [change for change in CHANGES if change.name in {"index", "NOT NULL", "backfill"}]
SMALL = [f"op.execute('CREATE TABLE small_{number} (id int)')" for number in range(3)]
ONE, ALL = "one `invoke db.migrate`", f"{MIGRATORS} `invoke db.migrate` at once"
ALEMBIC_ONE, ALEMBIC_ALL = "one `alembic upgrade head`", f"{MIGRATORS} `alembic upgrade head` at once"
FLOOR = f"{MIGRATORS} Pythons that connect and leave"
# On a slow machine, the one that works may take longer than the others wait by default.
WAIT = ("--wait", "3600")
CONNECT = "import sys, psycopg; psycopg.connect(sys.argv[1]).close()"


@dataclass
class Outcomes:
    """A figure, and how the processes of each rival ended: text to the number of them, over all rounds."""

    ends: dict[str, Counter[str]] = field(default_factory=dict)
    figure: Figure | None = None

    def as_markdown(self) -> str:
        """The figure with one more table."""
        assert self.figure is not None
        lines = [self.figure.as_markdown(), "", "| | how they ended | |", "| --- | --- | ---: |"]
        lines += [f"| {rival} | {text} | {count} |" for rival, text, count in self._rows()]
        return "\n".join(lines)

    def as_data(self) -> dict[str, Any]:
        """The same for a machine."""
        assert self.figure is not None
        return self.figure.as_data() | {"ends": self.ends}

    def _rows(self) -> Iterator[tuple[str, str, int]]:
        for rival, counts in self.ends.items():
            for text, count in counts.most_common():
                yield rival, text, count


def main() -> None:
    arguments = parse_arguments(__doc__, parts=("large", "small"))
    results = []
    with laboratory() as server:
        if "large" in arguments.only:
            ours, usual = [step for change in LARGE for step in change.ours], [each.usual for each in LARGE]
            rounds = max(1, arguments.repeat // LARGE_ROUNDS_PART)
            results.append(measure("A change of a million rows", server, ours, usual, rounds))
        if "small" in arguments.only:
            title = "Three revisions that take almost nothing"
            results.append(measure(title, server, SMALL, SMALL, arguments.repeat))
    where = "tmpfs" if in_memory() else "disk"
    machine = describe_machine(PACKAGES, PostgreSQL=find_binaries().version, **{"data on": where})
    report(machine, results, as_json=arguments.json)


def measure(
    title: str, server: DatabaseUrl, ours: Sequence[str], usual: Sequence[str], rounds: int
) -> Outcomes:
    """Race one against twenty, both ways, each time from the same database."""
    outcomes = Outcomes()
    empty = ours is usual

    def rival(name: str, count: int, upgrades: Sequence[str], *, plain: bool) -> Callable[[], float]:
        def run() -> float:
            with temporary_folder() as folder, database(server, empty=empty) as url:
                command = [*write_project(folder, url, upgrades, usual=plain), *([] if plain else WAIT)]
                seconds, ends = run_at_once(command, folder, url, count)
                if not plain:
                    check(url, ends, len(upgrades))
            outcomes.ends.setdefault(name, Counter()).update(ends)
            return seconds

        return run

    def floor() -> float:
        url = server.with_database("postgres")
        return run_at_once([sys.executable, "-c", CONNECT, url.plain], None, url, MIGRATORS)[0]

    rivals = {
        ONE: rival(ONE, 1, ours, plain=False),
        ALL: rival(ALL, MIGRATORS, ours, plain=False),
        ALEMBIC_ONE: rival(ALEMBIC_ONE, 1, usual, plain=True),
        ALEMBIC_ALL: rival(ALEMBIC_ALL, MIGRATORS, usual, plain=True),
        FLOOR: floor,
    }
    outcomes.figure = race(title, rivals, [Comparison(ALL, ONE, TARGET)], rounds)
    return outcomes


def run_at_once(
    command: Sequence[str | Path], folder: Path | None, url: DatabaseUrl, count: int
) -> tuple[float, list[str]]:
    """Start so many of a command and wait for the last. Returns the seconds, and how each ended."""
    environment = inherited_environment() | {"DATABASE_URL": url.plain}
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(count)
    ]
    # What one says fits into its pipe: none waits for being read.
    said = [process.communicate()[0] for process in processes]
    seconds = time.perf_counter() - began
    return seconds, [
        describe(process.returncode, text) for process, text in zip(processes, said, strict=True)
    ]


def describe(code: int, said: str) -> str:
    """How one ended, without what differs between two runs."""
    if code == 0:
        return "0, applied" if "\n+ " in f"\n{said}" or "Running upgrade" in said else "0"
    errors = [line for line in said.splitlines() if "rror" in line and not line.startswith(" ")]
    return f"{code}, {errors[0].partition(':')[0] if errors else said.strip().splitlines()[-1]}"


def check(url: DatabaseUrl, ends: Sequence[str], revisions: int) -> None:
    """Hold the target's words against what happened: one applies, nobody fails."""
    with psycopg.connect(url.plain) as session:
        rows = session.execute("SELECT revision, count(*) FROM rag_factory.ledger GROUP BY 1").fetchall()
    expected = {str(number): 1 for number in range(2, revisions + 2)}
    if {end[0] for end in ends} != {"0"} or ends.count("0, applied") != 1 or dict(rows) != expected:
        raise RuntimeError(f"The migrators ended with {Counter(ends)}, the ledger has {rows}")


@contextmanager
def database(server: DatabaseUrl, *, empty: bool) -> Iterator[DatabaseUrl]:
    """A copy of the tables of a million rows, or a database with a version table alone."""
    if not empty:
        with copied_tables(server) as url:
            yield url
        return
    with psycopg.connect(server.plain, autocommit=True) as session:
        session.execute("CREATE DATABASE small")
        try:
            url = server.with_database("small")
            with psycopg.connect(url.plain) as inside:
                inside.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
                inside.execute("INSERT INTO alembic_version VALUES ('1')")
            yield url
        finally:
            session.execute("DROP DATABASE small WITH (FORCE)")


if __name__ == "__main__":
    main()
