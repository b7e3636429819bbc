"""The project's own tasks: fill the database with something to find, and find it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_factory.errors import BehindError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import progress_bar, say, show, show_json
from rag_factory.tasks.texts import DATABASE, JSON, YES, whole_number

if TYPE_CHECKING:
    from rag_factory.database.connection import DatabaseConnection
    from rag_factory.database.embedding import Embedder
    from rag_factory.database.search import HybridHit
    from rag_factory.tasks.workspace import Workspace

SNIPPET_CHARACTERS = 300
ARROW = " > "  # as in the texts that were stored


@command("seed", yes=YES, database=DATABASE)
def seed(work: Workspace, yes: bool = False, database: str | None = None) -> None:
    """Store the project's documentation, to try searches on."""
    from rag_factory.migrate.guard import find_protection

    connection = _connect(work)
    # It destroys nothing but what it stored before: only a protected environment is asked about it.
    effect = f"This stores the project's documentation in {work.target.place}"
    work.confirm(effect, yes=yes or not find_protection(work.target), database=database)
    from rag_factory.services.corpus import find_files
    from rag_factory.services.corpus import seed as store

    embedder = _embedder(work)
    with (
        connection,
        connection.session() as session,
        progress_bar("documents", len(find_files(work.root))) as advance,
    ):
        report = store(
            session,
            work.root,
            embedder,
            lambda done: advance(done.added + done.replaced + done.unchanged),
        )
    done = report.ingested
    say(
        f"{done.added} documents added, {done.replaced} replaced, {report.removed} removed, "
        f"{done.unchanged} unchanged; {done.chunks} chunks stored"
    )


@command("search", query="What to look for.", limit="How many hits at most (5).", json=JSON)
def search(work: Workspace, query: str, limit: str = "5", json: bool = False) -> None:
    """Find what answers a question in the stored documents."""
    number = whole_number(limit, "--limit")
    connection = _connect(work)
    from rag_factory.services.corpus import ask, is_seeded

    embedder = _embedder(work)
    with connection, connection.session(read_only=True) as session:
        hits = ask(session, query, embedder, number)
        empty = not hits and not is_seeded(session)
    if json:
        show_json([_describe(hit) for hit in hits])
    else:
        for place, hit in enumerate(hits, 1):
            _show(place, hit)
    if empty:
        say("There are no documents. Store some: invoke db.seed")
    elif not hits:
        say("Nothing was found")


TASKS = (seed, search)


def _connect(work: Workspace) -> DatabaseConnection:
    """Connect to a database that has all tables. Raises BehindError: it is not migrated."""
    pending = work.history.pending(work.read_known_state().revisions, work.history.head)
    if pending:
        count = f"{len(pending)} revision{'s' if len(pending) > 1 else ''} pending"
        raise BehindError(f"{work.target.place} is behind: {count}.", fix="First: invoke db.migrate")
    from rag_factory.database.connection import DatabaseConnection

    return DatabaseConnection(work.config, url=None if work.config.url else work.target.url)


def _embedder(work: Workspace) -> Embedder:
    from rag_factory.services.corpus import load_embedder

    return load_embedder(work.project.pyproject.get("rag_factory", {}).get("embedder"))


def _describe(hit: HybridHit) -> dict[str, object]:
    """A hit for a machine."""
    return {
        "score": hit.score,
        "file": hit.source_path or hit.filename,
        "headings": _headings(hit),
        "text": hit.text,
        "chunk_id": str(hit.chunk_id),
        "document_id": str(hit.document_id),
    }


def _headings(hit: HybridHit) -> list[str]:
    """The headings above a hit; of a document that an application stored, whatever it calls so."""
    headings = hit.metadata.get("headings", [])
    return [str(each) for each in headings] if isinstance(headings, list) else []


def _show(place: int, hit: HybridHit) -> None:
    """A hit for people: where it stands, and the beginning of its text."""
    headings = ARROW.join(_headings(hit))
    text = " ".join(hit.text.removeprefix(headings).split())
    if len(text) > SNIPPET_CHARACTERS:
        text = text[:SNIPPET_CHARACTERS].rsplit(" ", 1)[0] + " …"
    show(f"{place}. {hit.source_path or hit.filename}: {headings}  ({hit.score:.4f})\n   {text}")
