"""The main job, from nothing to a migrated database and back, through the real command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import CommandLine


def test_migrate_makes_database_extension_and_schema(cli: CommandLine) -> None:
    done = cli.invoke("db.migrate")
    assert done.returncode == 0, done.stderr
    assert "created extension vector" in done.stderr
    assert json.loads(cli.invoke("db.status", "--json").stdout)["revision"] == ["002"]
