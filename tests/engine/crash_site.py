"""A project with a server of its own, whose tasks and server are killed at random moments.

CRASH_MOMENTS sets how many moments each case is tried at (1), CRASH_SEED which ones.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from rag_factory.database.url import DatabaseUrl
from rag_factory.server import EmbeddedServer
from tests.conftest import FAST, CommandLine, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOMENTS = int(os.environ.get("CRASH_MOMENTS", "1"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 10_000)
VICTIMS = ("process", "server")
# What is committed outlives the server's processes, if not the machine.
SETTINGS = FAST | {"synchronous_commit": "on"}
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
                # Without it a crash sets the copy's sequences back: what they give out after that isn't
                # logged until 32 numbers or a checkpoint later (PostgreSQL 18.6).
                "CHECKPOINT",
            ):
                names = {"goal": sql.Identifier(goal), "source": sql.Identifier(source)}
                session.execute(sql.SQL(statement).format(**names))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *arguments],
            cwd=self.cli.root,
            env=clean_environment(self.cli.environment),
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


@contextlib.contextmanager
def open_site(root: Path, data_folder: Path) -> Iterator[Site]:
    """Make a project without revisions in `root`, and start its server."""
    (root / "migrations" / "versions").mkdir(parents=True)
    (root / "tasks.py").write_text(TASKS)
    (root / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (root / "pyproject.toml").write_text("[tool.rag_factory]\nextensions = []\n")
    (root / "migrations" / "env.py").write_text(ENVIRONMENT)
    server = EmbeddedServer(data_folder, settings=SETTINGS)
    server.ensure_running()
    try:
        yield Site(CommandLine(root, {"EMBEDDED_DATA_FOLDER": str(data_folder)}), server)
    finally:
        server.stop()
