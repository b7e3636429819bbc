"""A process or the server killed at any moment: the next run finishes the work, once.

How many moments, and which: see crash_site.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from rag_factory.migrate.schema import read_schema
from tests.engine.crash_site import MOMENTS, SEED, VICTIMS, Site, open_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    State = tuple[object, ...]

REVISION = '''"""step {id}"""
from alembic import op

revision = "{id}"
down_revision = {parent!r}

def upgrade():
    {upgrade}

def downgrade():
    {downgrade}
'''
# Of everything: a revision in one transaction, a concurrent index, batches that count each row, a validation.
REVISIONS = (
    (
        (
            'op.execute("CREATE TABLE items (id int PRIMARY KEY, code text, n int NOT NULL DEFAULT 0)"); '
            'op.execute("INSERT INTO items SELECT i, md5(i::text) FROM generate_series(1, 30000) AS i")'
        ),
        'op.execute("DROP TABLE items")',
    ),
    (
        'op.execute("CREATE TABLE notes AS SELECT id, code FROM items")',
        'op.execute("DROP TABLE notes")',
    ),
    (
        "op.create_index_online('idx_items_code', 'items', ['code'])",
        "op.drop_index_online('idx_items_code', 'items')",
    ),
    ("op.backfill('items', 'n = n + 1')", "op.backfill('items', 'n = n - 1')"),
    ("op.set_not_null_online('items', 'code')", "op.drop_not_null_online('items', 'code')"),
)
# Of the revisions, and of what is kept of the database at each.
NAMES = tuple(str(number) for number in range(1, len(REVISIONS) + 1))
ROWS = "SELECT count(*), sum(n), min(n), max(n), bit_xor(hashtext(code)) FROM items"


def read_state(site: Site) -> State:
    """Everything that a run decides: schema, revision, rows, and that each batch was counted once."""
    with psycopg.connect(site.url().plain, autocommit=True) as session:
        revision = session.execute("SELECT string_agg(version_num, ' ') FROM alembic_version").fetchone()
        rows = session.execute(ROWS).fetchone()
        return read_schema(session), revision, rows


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, public_folder: Path) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("crashes")
    with open_site(root, public_folder / "crashes") as site:
        for number, (upgrade, downgrade) in enumerate(REVISIONS, 1):
            parent = str(number - 1) if number > 1 else None
            text = REVISION.format(id=number, parent=parent, upgrade=upgrade, downgrade=downgrade)
            (root / "migrations" / "versions" / f"{number}.py").write_text(text)
        for name in NAMES:
            site.run("db.migrate", "--to", name)
            site.copy("app", name)
        yield site


@pytest.fixture(scope="module")
def states(site: Site) -> dict[str, State]:
    """What the database reads like at each revision when nothing happened to it."""
    found = {}
    for name in NAMES:
        site.copy(name, "app")
        found[name] = read_state(site)
    assert len(set(found.values())) == len(REVISIONS)
    return found


@pytest.fixture(scope="module")
def usual_seconds() -> dict[str, float]:
    """How long each case takes when nobody disturbs it, once that was seen."""
    return {}


# From which revision, by which task, to which.
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "migrate": ("1", ("db.migrate",), "5"),
    "index": ("2", ("db.migrate", "--to", "3"), "3"),
    "backfill": ("3", ("db.migrate", "--to", "4"), "4"),
    "rollback": ("5", ("db.rollback", "--to", "1", "--yes", "--allow-data-loss", "--no-backup"), "1"),
    "backup": ("5", ("db.backup", "--keep", "3"), "5"),
    "restore": ("1", ("db.restore", "--yes"), "5"),
}


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("case", CASES)
def test_next_run_finishes_what_a_crash_cut_off(
    site: Site, states: dict[str, State], usual_seconds: dict[str, float], case: str, victim: str
) -> None:
    start, task, goal = CASES[case]
    if case == "restore":
        site.copy("5", "app")
        site.run("db.backup")
    if case not in usual_seconds:
        site.copy(start, "app")
        began = time.monotonic()
        site.run(*task)
        usual_seconds[case] = time.monotonic() - began
    choose = random.Random(f"{SEED} {case} {victim}")
    for number in range(MOMENTS):
        site.copy(start, "app")
        moment = choose.uniform(0, usual_seconds[case])
        site.crash(moment, victim, *task)
        where = f"CRASH_SEED={SEED}, moment {number}: {moment:.3f} of {usual_seconds[case]:.3f} s"
        done = site.cli.invoke(*task)
        assert done.returncode == 0, (where, done.stderr)
        assert read_state(site) == states[goal], where
        if case == "backup":
            listed = site.cli.invoke("db.backups", "--verify")
            assert listed.returncode == 0, (where, listed.stdout, listed.stderr)
        assert site.cli.invoke("db.status").returncode == (0 if goal == "5" else 5), where
