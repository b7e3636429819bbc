"""A process or the server killed at any moment: the next run finishes the work, once.

CRASH_MOMENTS sets how many moments each case is tried at (1), CRASH_SEED which ones.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from rag_factory.database.url import DatabaseUrl
from rag_factory.migrate.schema import read_schema
from rag_factory.server import EmbeddedServer
from tests.conftest import FAST, CommandLine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    State = tuple[object, ...]

MOMENTS = int(os.environ.get("CRASH_MOMENTS", "1"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 10_000)
TASKS = """
from pathlib import Path
from rag_factory.tasks import build_namespace
namespace = build_namespace(Path(__file__).parent)
"""
ENVIRONMENT = """
from sqlalchemy import MetaData
from rag_factory.migrate.environment import run_environment
run_environment(MetaData())
"""
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
ROWS = "SELECT count(*), sum(n), min(n), max(n), bit_xor(hashtext(code)) FROM items"


@dataclass
class Site:
    """A project with a server of its own, and databases to be crashed in."""

    cli: CommandLine
    server: EmbeddedServer

    def url(self, name: str = "app") -> DatabaseUrl:
        address = self.server.ensure_running()
        return DatabaseUrl(host=address.host, port=address.port, user=address.user, database=name)

    def run(self, *arguments: str) -> str:
        done = self.cli.invoke(*arguments)
        assert done.returncode == 0, (SEED, arguments, done.stderr)
        return done.stderr

    def copy(self, source: str, goal: str) -> None:
        """Make a database anew as a copy of another one."""
        with psycopg.connect(self.url("postgres").plain, autocommit=True) as session:
            for statement in (
                "DROP DATABASE IF EXISTS {goal} WITH (FORCE)",
                "CREATE DATABASE {goal} TEMPLATE {source}",
            ):
                names = {"goal": sql.Identifier(goal), "source": sql.Identifier(source)}
                session.execute(sql.SQL(statement).format(**names))

    def state(self) -> State:
        """Everything that a run decides: schema, revision, rows, and that each batch was counted once."""
        with psycopg.connect(self.url().plain, autocommit=True) as session:
            revision = session.execute("SELECT array_agg(version_num) FROM alembic_version").fetchone()
            rows = session.execute(ROWS).fetchone()
            return read_schema(session), revision, rows

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *arguments],
            cwd=self.cli.root,
            env={**os.environ, **self.cli.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def crash(self, moment: float, victim: str, *arguments: str) -> None:
        """Run a task, and kill it or the server `moment` seconds after its start."""
        with self.start(*arguments) as process:
            # A moment is what is tried here: there is no state to wait for.
            time.sleep(moment)
            if victim == "process":
                process.kill()
            else:
                pid = self.server.status().pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, public_folder: Path) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("crashes")
    versions = root / "migrations" / "versions"
    versions.mkdir(parents=True)
    (root / "tasks.py").write_text(TASKS)
    (root / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (root / "pyproject.toml").write_text("[tool.rag_factory]\nextensions = []\n")
    (root / "migrations" / "env.py").write_text(ENVIRONMENT)
    for number, (upgrade, downgrade) in enumerate(REVISIONS, 1):
        parent = str(number - 1) if number > 1 else None
        text = REVISION.format(id=number, parent=parent, upgrade=upgrade, downgrade=downgrade)
        (versions / f"{number}.py").write_text(text)
    data_folder = public_folder / "crashes"
    server = EmbeddedServer(data_folder, settings=FAST)
    server.ensure_running()
    site = Site(CommandLine(root, {"EMBEDDED_DATA_FOLDER": str(data_folder)}), server)
    site.run("db.migrate", "--to", "1")
    site.copy("app", "before")
    site.run("db.migrate")
    site.copy("app", "after")
    try:
        yield site
    finally:
        server.stop()


@pytest.fixture(scope="module")
def states(site: Site) -> dict[str, State]:
    """What each database reads like that nothing happened to."""
    found = {}
    for name in ("before", "after"):
        site.copy(name, "app")
        found[name] = site.state()
    assert found["before"] != found["after"]
    return found


CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "migrate": ("before", ("db.migrate",), "after"),
    "rollback": (
        "after",
        ("db.rollback", "--to", "1", "--yes", "--allow-data-loss", "--no-backup"),
        "before",
    ),
    "backup": ("after", ("db.backup", "--keep", "3"), "after"),
    "restore": ("before", ("db.restore", "--yes"), "after"),
}


@pytest.mark.parametrize("victim", ["process", "server"])
@pytest.mark.parametrize("case", CASES)
def test_next_run_finishes_what_a_crash_cut_off(
    site: Site, states: dict[str, State], case: str, victim: str
) -> None:
    start, task, goal = CASES[case]
    if case == "restore":
        site.copy("after", "app")
        site.run("db.backup")
    site.copy(start, "app")
    began = time.monotonic()
    site.run(*task)
    seconds = time.monotonic() - began
    choose = random.Random(f"{SEED} {case} {victim}")
    for number in range(MOMENTS):
        site.copy(start, "app")
        moment = choose.uniform(0, seconds)
        site.crash(moment, victim, *task)
        where = f"CRASH_SEED={SEED}, moment {number}: {moment:.3f} of {seconds:.3f} s"
        done = site.cli.invoke(*task)
        assert done.returncode == 0, (where, done.stderr)
        assert site.state() == states[goal], where
        if case == "backup":
            listed = site.cli.invoke("db.backups", "--verify")
            assert listed.returncode == 0, (where, listed.stdout, listed.stderr)
        assert site.cli.invoke("db.status").returncode == (0 if goal == "after" else 5), where
