"""Measure the test databases: how soon they are ready, and what a test on one costs, next to other tools.

The tools are installed into environments in a temporary folder, at the versions that we use of what we share
with them. All use one server, whose data is in memory where there is a tmpfs.
Run it: uv run python benchmarks/testing.py
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.testing_laboratory import ALONE, MANY, SHARED, WORKERS, Laboratory, laboratory
from benchmarks.testing_projects import SMALL, TESTS
from benchmarks.timing import FEWEST_ROUNDS, Comparison, Figure, describe_machine, progress, race, report
from rag_factory.server import find_binaries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# So many times as fast.
KEEPDB, CLONES = 1 / 1.5, 1 / 2.5
PYTEST_DJANGO, PYTEST_POSTGRESQL, TESTS_OF_PYTEST_POSTGRESQL = 1 / 12, 1 / 20, 1 / 17


def main() -> None:
    arguments = parse_arguments()
    rounds: int = arguments.repeat
    figures: list[Figure] = []
    with laboratory() as lab:
        if "ready" in arguments.only:
            figures += [measure_ready(lab, number, rounds) for number in WORKERS]
            for number in (WORKERS[0], WORKERS[-1]):
                kept = partial(lab.time_ours, number, "kept")
                figures.append(measure_growth(lab, f"{number} kept", kept, rounds))
            figures.append(measure_growth(lab, "A warm run of one test", lab.time_one_test, rounds))
        if "cold" in arguments.only:
            figures += [measure_cold(lab, number, max(rounds // 3, 1)) for number in WORKERS[1:]]
        if "test" in arguments.only:
            figures += [measure_rollback(lab, rounds), measure_clone(lab, rounds)]
        if "suite" in arguments.only:
            figures.append(measure_suite(lab, max(rounds // 3, 1)))
        if "start" in arguments.only:
            figures.append(measure_start(lab, max(rounds // 3, 1)))
        machine = describe_machine(SHARED, PostgreSQL=find_binaries().version, **lab.facts())
    report(machine, figures, as_json=arguments.json)


def parse_arguments() -> argparse.Namespace:
    parts = ["ready", "cold", "test", "suite", "start"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON, with every single time")
    parser.add_argument(
        "--repeat", type=int, default=21, metavar="ROUNDS", help="counted rounds (21); a third for whole runs"
    )
    parser.add_argument(
        "--only", nargs="+", choices=parts, default=parts, metavar="PART", help=f"of {', '.join(parts)}"
    )
    arguments = parser.parse_args()
    if arguments.repeat < 1:
        parser.error("--repeat must be 1 or more")
    if arguments.repeat < FEWEST_ROUNDS:
        progress(f"warning: {arguments.repeat} rounds are too few to judge by; {FEWEST_ROUNDS} or more are")
    return arguments


def measure_ready(lab: Laboratory, number: int, rounds: int) -> Figure:
    """Time how long it takes until as many workers have their databases, imports not counted."""
    kept, fresh, cold = "ours, kept", "ours, fresh clones", "ours, cold"
    each, django, keepdb = "Alembic in each worker", "pytest-django", "Django --keepdb"
    alone, clones, janitors = "ours, clones alone", "Django's clones alone", "pytest-postgresql"
    rivals = {
        kept: lambda: lab.time_ours(number, "kept"),
        fresh: lambda: lab.time_ours(number, "cloned"),
        alone: lambda: lab.time_ours(number, "cloned", take_part=False),
        cold: lambda: lab.time_ours(number, "built"),
        each: lambda: lab.time_alembic(number),
        django: lambda: lab.time_django(number, keep=False),
        keepdb: lambda: lab.time_django(number, keep=True),
        clones: lambda: lab.time_django_clones(number),
        janitors: lambda: lab.time_pytest_postgresql(number),
    }
    comparisons = []
    if number > 1:
        comparisons += [Comparison(cold, each, 1.0), Comparison(cold, django, 1.0)]
    if number == WORKERS[-1]:
        comparisons += [
            Comparison(kept, keepdb, KEEPDB),
            Comparison(kept, django, PYTEST_DJANGO),
            Comparison(kept, janitors, PYTEST_POSTGRESQL),
            Comparison(alone, clones, CLONES),
            Comparison(fresh, clones, CLONES),
        ]
    return race(f"{number} ready", rivals, comparisons, rounds)


def measure_growth(lab: Laboratory, title: str, time: Callable[[Path], float], rounds: int) -> Figure:
    """Time something warm in a project that is 20 times older too.

    The younger one is measured twice: less than what lies between these can't be told apart.
    """
    few, again, many = f"{SMALL} revisions", f"{SMALL} revisions, again", f"{MANY} revisions"
    rivals = {
        few: lambda: time(lab.project),
        again: lambda: time(lab.project),
        many: lambda: time(lab.old_project),
    }
    return race(f"{title}, more revisions", rivals, [Comparison(many, few, 1.0)], rounds)


def measure_cold(lab: Laboratory, number: int, rounds: int) -> Figure:
    """Time from the command of a first run until the last of so many workers has its database."""
    ours, each = f"ours, -n {number}", f"Alembic in each, -n {number}"
    rivals = {ours: lambda: lab.time_cold_run(number), each: lambda: lab.time_cold_alembic_run(number)}
    return race(f"A first run, {number} workers", rivals, [Comparison(ours, each, 1.0)], rounds)


def measure_rollback(lab: Laboratory, rounds: int) -> Figure:
    """Time one ORM insert and commit, and what takes it back."""
    rollback, committing, recipe = "`db_connection`", "`committing_database`", "SQLAlchemy's recipe"
    rivals = {
        rollback: lambda: lab.time_test("rollback_fixture"),
        committing: lambda: lab.time_test("committing_fixture"),
        recipe: lambda: lab.time_test("savepoint_recipe"),
    }
    comparisons = [Comparison(rollback, recipe, 1.0), Comparison(committing, recipe, 1.1)]
    return race("100 tests", rivals, comparisons, rounds)


def measure_clone(lab: Laboratory, rounds: int) -> Figure:
    """Time databases of a test's own, one after the other."""
    fresh, raw = "`fresh_database`", "`CREATE DATABASE … TEMPLATE`, `DROP DATABASE`"
    rivals = {
        fresh: lambda: lab.time_test("fresh_fixture", 20),
        raw: lambda: lab.time_test("raw_clone", 20),
    }
    return race("Twenty clones", rivals, [Comparison(fresh, raw, 1.1)], rounds)


def measure_suite(lab: Laboratory, rounds: int) -> Figure:
    """Time whole runs of pytest, all databases kept where the tool can keep them."""
    ours, ours_2, django, django_2 = "ours", "ours, -n 2", "pytest-django", "pytest-django, -n 2"
    recipe, janitors = "SQLAlchemy's recipe in a conftest.py", "pytest-postgresql"
    rivals = {
        ours: lambda: lab.time_pytest(lab.our_python, lab.project),
        ours_2: lambda: lab.time_pytest(lab.our_python, lab.project, "-n", "2"),
        django: lambda: lab.time_pytest(lab.django_python, lab.django_project, "--reuse-db"),
        django_2: lambda: lab.time_pytest(lab.django_python, lab.django_project, "--reuse-db", "-n", "2"),
        recipe: lambda: lab.time_pytest(lab.alembic_python, lab.each_project, *ALONE),
        janitors: lambda: lab.time_pytest(lab.alembic_python, lab.alembic_project),
    }
    comparisons = [
        Comparison(ours, django, 1.0),
        Comparison(ours_2, django_2, 1.0),
        Comparison(ours, recipe, 1.0),
        Comparison(ours, janitors, TESTS_OF_PYTEST_POSTGRESQL),
    ]
    return race(f"{TESTS} tests", rivals, comparisons, rounds)


def measure_start(lab: Laboratory, rounds: int) -> Figure:
    """Time from the command to the first test; nothing to hold it against but pytest alone."""
    rivals = {
        "a fresh clone, `nox -s tests`": lab.time_fresh_start,
        "`nox -R -s tests`": lab.time_warm_start,
        "`pytest` alone, one test": lab.time_bare_start,
    }
    return race("The first test", rivals, [], rounds)


if __name__ == "__main__":
    main()
