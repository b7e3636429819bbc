"""The main job, from nothing to a migrated database and back, through the real command line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks


def test_main_job_on_a_server_of_ones_own(tasks: Tasks) -> None:
    done = tasks.succeed("db.migrate")
    assert "created extension vector" in done.stderr
    assert tasks.status()["revision"] == ["002"]
    assert tasks.succeed("db.migrate").stderr.endswith("is at 002 (head); nothing to do\n")
    tasks.succeed("db.rollback", "--all", "--yes")
    assert tasks.status()["revision"] == []
    assert tasks.succeed("db.migrate").stderr.endswith("is at 002 (head)\n")


def test_main_job_on_the_embedded_server(cli: CommandLine, public_folder: Path) -> None:
    cli = replace(cli, environment={"EMBEDDED_DATA_FOLDER": str(public_folder / "embedded")})
    for arguments in (("db.status",), ("db.rollback", "--yes"), ("db.check",)):
        done = cli.invoke(*arguments)
        assert (done.returncode, done.stdout) == (3, ""), done.stderr
        assert "the embedded server was never started. Begin: invoke db.migrate" in done.stderr
    assert not (public_folder / "embedded").exists()
    try:
        done = cli.invoke("db.migrate")
        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith("app on the embedded server is at 002 (head)\n")
        status = json.loads(cli.invoke("db.status", "--json").stdout)
        assert (status["server"]["embedded"]["state"], status["revision"]) == ("running", ["002"])
        done = cli.invoke("db.rollback", "--all", "--yes", "db.migrate", "db.check")
        assert done.returncode == 0, done.stderr
        # And what no page of the documentation runs, which all use this server.
        rest = "db.start db.history --ledger db.show 002 db.schema db.schema --check db.diagram --revisions "
        rest += "db.accept 002 db.protect db.protect --off --yes --database app db.unlock db.drop --yes"
        done = cli.invoke(*rest.split())
        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith("dropped database app\n")
        assert cli.invoke("db.migrate").returncode == 0
    finally:
        stopped = cli.invoke("db.stop")
    assert stopped.returncode == 0
    assert "was not running" in cli.invoke("db.stop").stderr
    # The data stays, and the next task starts the server again.
    try:
        again = cli.invoke("db.status")
        assert again.returncode == 0, again.stderr
    finally:
        cli.invoke("db.stop")
