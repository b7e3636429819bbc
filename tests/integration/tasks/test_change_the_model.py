"""docs/howto/change-the-embedding-model.md: its commands, its code and its revision, from begin to end."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.connection import DatabaseConnection
from rag_factory.database.ingest import ingest
from rag_factory.database.new_documents import NewChunk, NewDocument
from rag_factory.database.search import search_hybrid

if TYPE_CHECKING:
    import pytest

    from rag_factory.database.embedding import OfflineEmbedder
    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "howto" / "change-the-embedding-model.md").read_text(encoding="utf-8")
CODE, REVISION = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BEGIN, GO_ON, CUT_OVER, BACK, END = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
MODELS = """
from rag_factory.database.embedding import OfflineEmbedder

class OldModel(OfflineEmbedder):
    name = "old-model-1"
    def __init__(self):
        super().__init__(1536)

class NewModel(OfflineEmbedder):
    name = "new-model-1"
    def __init__(self):
        super().__init__(1024)
"""
COLUMNS = text("""
    SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = 'chunks'::regclass AND attname ~ 'embedding' AND NOT attisdropped
""")
SUBJECTS = ("rivers", "violins", "glaciers", "bakeries", "comets", "harbours")


def without_numbers(shown: str) -> str:
    return re.sub(r"\b\d+(\.\d+)?%?", "N", shown)


def run(cli: CommandLine, console: str) -> None:
    """Run the commands of a block, in one process; they say what the page says, but for the numbers."""
    called: list[str] = []
    expected: list[str] = []
    for line in console.splitlines():
        if line.startswith("$ invoke "):
            called += line.split()[2:]
        else:
            expected.append(without_numbers(line))
    done = cli.invoke(*called)
    assert done.returncode == 0, done.stderr
    assert sorted(without_numbers(done.stdout + done.stderr).splitlines()) == sorted(expected)


def assert_columns(connection: DatabaseConnection, type_: str) -> None:
    with connection.session() as session:
        assert [tuple(row) for row in session.execute(COLUMNS)] == [("embedding", type_)]


def test_page(
    cli: CommandLine, database_url: DatabaseUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cli.root / "app").mkdir()
    (cli.root / "app" / "embedding.py").write_text(MODELS)
    assert cli.invoke("db.migrate").returncode == 0
    package: Any = ModuleType("app.embedding")
    exec(MODELS, vars(package))
    monkeypatch.setitem(sys.modules, "app", ModuleType("app"))
    monkeypatch.setitem(sys.modules, "app.embedding", package)
    code: dict[str, Any] = {"search_hybrid": search_hybrid}
    exec(CODE, code)

    def documents(embedder: OfflineEmbedder, name: str) -> list[NewDocument]:
        texts = [f"{SUBJECTS[n % 6]} {SUBJECTS[n % 5]} of {name} number {n}" for n in range(150)]
        chunks = [NewChunk(each, vector) for each, vector in zip(texts, embedder.embed(texts), strict=True)]
        return [NewDocument(f"{name}.md", chunks, source_path=f"{name}.md")]

    config = DatabaseConfig.load(tmp_path)
    with DatabaseConnection(config, url=database_url) as connection:
        old, new = code["MODELS"][False], code["MODELS"][True]
        for name in ("north", "south"):
            with connection.session() as session:
                ingest(session, documents(old, name))

        def found(question: str) -> str:
            return str(code["find"](connection, question)[0].text)

        question = "comets rivers of north number 10"
        assert found(question) == question
        run(cli, BEGIN + GO_ON)
        assert found(question) == question
        run(cli, CUT_OVER)
        assert found(question) == question
        # What is written now has an embedding of the new model only; going back gives it one of the old.
        with connection.session() as session:
            ingest(session, documents(new, "west"))
        back, _, again = BACK.partition("$ invoke db.reembed --cut-over\n")
        run(cli, back)
        assert found(question.replace("north", "west")) == question.replace("north", "west")
        run(cli, f"$ invoke db.reembed --cut-over\n{again}{END}")
        assert_columns(connection, "vector(1024)")

        (cli.root / "migrations" / "versions" / "029_dimensions.py").write_text(
            f"from alembic import op\nrevision = '029'\ndown_revision = '028'\n{REVISION}"
        )
        env = cli.root / "migrations" / "env.py"
        # As DIMENSIONS = 1024 would have it.
        change = "Base.metadata.tables['chunks'].c.embedding.type.dim = 1024\n"
        env.write_text(env.read_text().replace("run_environment(", f"{change}run_environment(", 1))
        done = cli.invoke("db.migrate", "db.check")
        assert "The models and the schema agree" in done.stderr, done.stderr + done.stdout
        done = cli.invoke("db.rollback", "--yes")
        assert done.returncode == 1
        assert "chunks has embeddings of another model: change them first" in done.stderr
        with connection.session() as session:
            session.execute(text("UPDATE chunks SET embedding = NULL"))
        assert cli.invoke("db.rollback", "--yes").returncode == 0
        assert_columns(connection, "vector(1536)")
