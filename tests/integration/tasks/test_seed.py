"""db.seed and db.search on the real command line, from an empty database on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine

ROOT = Path(__file__).parents[3]
QUESTION = "how do I roll back"
EMBEDDER = """
class Mine:
    name = "mine"
    dimensions = 1536

    def embed(self, texts):
        raise ConnectionError("no network")
"""


def fails(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """Hold a task to a code, a message and nothing else."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert "should not happen" not in done.stderr
    assert [each for each in said if each not in done.stderr] == [], done.stderr


def succeeds(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def test_documentation_is_seeded_and_found(cli: CommandLine, database_url: DatabaseUrl) -> None:
    for part in ("README.md", "docs", "tests/README.md"):
        source, goal = ROOT / part, cli.root / part
        shutil.copytree(source, goal) if source.is_dir() else shutil.copy(source, goal)
    name = database_url.database

    succeeds(cli.invoke("db.create"))
    fails(cli.invoke("db.search", QUESTION), 5, name, "is behind", "invoke db.migrate")
    succeeds(cli.invoke("db.migrate"))
    done = succeeds(cli.invoke("db.search", QUESTION))
    assert (done.stdout, done.stderr) == ("", "There are no documents. Store some: invoke db.seed\n")

    production = replace(cli, environment=cli.environment | {"APP_ENV": "production"})
    fails(production.invoke("db.seed", "--yes"), 4, "Nothing was changed", f"--yes --database {name}")
    fails(cli.invoke("db.seed", "--database", "other"), 4, "--database is other")
    done = succeeds(production.invoke("db.seed", "--yes", "--database", name))
    files = len(list((cli.root / "docs").rglob("*.md"))) + 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{files} documents added, 0 replaced, 0 removed, 0 unchanged; ")
    again = f"0 documents added, 0 replaced, 0 removed, {files} unchanged; 0 chunks stored\n"
    assert succeeds(cli.invoke("db.seed")).stderr == again

    done = succeeds(cli.invoke("db.search", QUESTION))
    assert done.stderr == ""
    first, text, second, *_ = done.stdout.splitlines()
    assert first.startswith("1. docs/database/README.md: The database, day by day > Roll back  (")
    assert "db.rollback" in text
    assert second.startswith("2. ")
    done = succeeds(cli.invoke("db.search", QUESTION, "--limit", "2", "--json"))
    hits = json.loads(done.stdout)
    assert [hit["file"] for hit in hits][:1] == ["docs/database/README.md"]
    assert hits[0]["headings"] == ["The database, day by day", "Roll back"]
    assert len(hits) == 2
    assert set(hits[0]) == {"score", "file", "headings", "text", "chunk_id", "document_id"}

    fails(cli.invoke("db.search", QUESTION, "--limit", "0"), 2, "--limit is 0")
    fails(cli.invoke("db.search", ""), 2, "The query is empty")

    (cli.root / "app").mkdir()
    (cli.root / "app" / "embedding.py").write_text(EMBEDDER)
    (cli.root / "pyproject.toml").write_text('[tool.rag_factory]\nembedder = "app.embedding:Mine"\n')
    fails(cli.invoke("db.seed"), 1, "The embedder mine failed: ConnectionError: no network")
