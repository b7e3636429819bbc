"""The tree of a document's chunks, walked in every direction."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import select, update

from rag_factory.database.hierarchy import (
    ancestors,
    descendants,
    expand,
    find_problems,
    siblings,
    subtree,
)
from rag_factory.database.ingest import NewChunk, NewDocument, ingest
from rag_factory.database.models import Chunk, Document
from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from sqlalchemy.orm import Session

    from rag_factory.database.hierarchy import Node

# By breadth, so that the order of the indexes is not that of the tree.
GUIDE = NewDocument(
    "guide.md",
    [
        NewChunk("guide"),
        NewChunk("install", level=1, parent=0),
        NewChunk("use", level=1, parent=0),
        NewChunk("on Linux", level=2, parent=1),
        NewChunk("search", level=2, parent=2),
        NewChunk("on a Mac", level=2, parent=1),
        NewChunk("from a package", level=3, parent=3),
        NewChunk("appendix"),
    ],
)


@pytest.fixture
def find(db_connection: Session) -> Callable[[str], UUID]:
    """Find a chunk of the guide by its text. Another document is there too."""
    ingest(db_connection, [GUIDE, NewDocument("other.md", [NewChunk("other"), NewChunk("root")])])

    def find_chunk(text: str) -> UUID:
        return db_connection.scalars(select(Chunk.chunk_id).where(Chunk.text == text)).one()

    return find_chunk


def shown(nodes: Iterable[Node]) -> list[tuple[str, int]]:
    """The text and depth of each."""
    return [(node.text, node.depth) for node in nodes]


def test_ancestors_are_nearest_first(db_connection: Session, find: Callable[[str], UUID]) -> None:
    leaf = find("from a package")
    assert shown(ancestors(db_connection, leaf)) == [("on Linux", 1), ("install", 2), ("guide", 3)]
    assert shown(ancestors(db_connection, leaf, max_depth=1)) == [("on Linux", 1)]
    assert ancestors(db_connection, find("guide")) == ancestors(db_connection, uuid4()) == []


def test_node_has_all_that_is_known_of_a_chunk(db_connection: Session, find: Callable[[str], UUID]) -> None:
    node = ancestors(db_connection, find("search"))[0]
    chunk = db_connection.get_one(Chunk, find("use"))
    assert (node.chunk_id, node.document_id, node.chunk_index) == (chunk.chunk_id, chunk.document_id, 2)
    assert (node.parent_chunk_id, node.hierarchy_level, node.metadata) == (find("guide"), 1, {})


def test_descendants_are_by_depth(db_connection: Session, find: Callable[[str], UUID]) -> None:
    assert shown(descendants(db_connection, find("guide"))) == [
        ("install", 1),
        ("use", 1),
        ("on Linux", 2),
        ("search", 2),
        ("on a Mac", 2),
        ("from a package", 3),
    ]
    assert shown(descendants(db_connection, find("guide"), max_depth=1)) == [("install", 1), ("use", 1)]
    assert descendants(db_connection, find("search")) == []


def test_siblings_are_the_others_of_the_same_parent(
    db_connection: Session, find: Callable[[str], UUID]
) -> None:
    assert shown(siblings(db_connection, find("on Linux"))) == [("on a Mac", 0)]
    assert shown(siblings(db_connection, find("guide"))) == [("appendix", 0)], "of its own document"
    assert siblings(db_connection, find("search")) == siblings(db_connection, uuid4()) == []


def test_subtree_is_in_document_order(db_connection: Session, find: Callable[[str], UUID]) -> None:
    assert shown(subtree(db_connection, find("guide"))) == [
        ("guide", 0),
        ("install", 1),
        ("on Linux", 2),
        ("from a package", 3),
        ("on a Mac", 2),
        ("use", 1),
        ("search", 2),
    ]
    assert shown(subtree(db_connection, find("install"), max_depth=1)) == [
        ("install", 0),
        ("on Linux", 1),
        ("on a Mac", 1),
    ]
    assert subtree(db_connection, uuid4()) == []


def test_hit_is_expanded_to_its_section(db_connection: Session, find: Callable[[str], UUID]) -> None:
    section = expand(db_connection, find("on Linux"))
    assert section.text == "install\n\non Linux\n\nfrom a package\n\non a Mac"
    assert section.nodes[0].chunk_id == find("install")
    assert expand(db_connection, find("on Linux"), levels=0).text == "on Linux\n\nfrom a package"
    whole = expand(db_connection, find("on Linux"), levels=9)
    assert shown(whole.nodes) == shown(subtree(db_connection, find("guide")))
    assert expand(db_connection, find("appendix")).text == "appendix", "it has no parent"


def test_section_does_not_repeat_what_the_parent_says(db_connection: Session) -> None:
    chunks = [
        NewChunk("First. Second."),
        NewChunk("First.", level=2, parent=0),
        NewChunk("Second.", level=2, parent=0),
        NewChunk("Third.", level=2, parent=0),
        NewChunk("Third.", level=2, parent=0),
    ]
    ingest(db_connection, [NewDocument("a.md", chunks)])
    leaf = db_connection.scalars(select(Chunk.chunk_id).where(Chunk.text == "Second.")).one()
    assert expand(db_connection, leaf).text == "First. Second.\n\nThird.\n\nThird."


def test_wrong_arguments_are_refused(db_connection: Session) -> None:
    missing = uuid4()
    with pytest.raises(UsageError, match=f"There is no chunk {missing}"):
        expand(db_connection, missing)
    with pytest.raises(UsageError, match="levels is -1"):
        expand(db_connection, missing, levels=-1)
    with pytest.raises(UsageError, match="max_depth is -1"):
        descendants(db_connection, missing, max_depth=-1)


def test_walks_end_on_a_circle(db_connection: Session, find: Callable[[str], UUID]) -> None:
    circle = update(Chunk).where(Chunk.text == "guide").values(parent_chunk_id=find("from a package"))
    db_connection.execute(circle)
    assert [node.text for node in ancestors(db_connection, find("install"))] == [
        "guide",
        "from a package",
        "on Linux",
    ]
    below = [node.text for node in subtree(db_connection, find("install"))]
    assert below == ["install", "on Linux", "from a package", "guide", "use", "search", "on a Mac"]


def test_problems_are_found_and_told_apart(db_connection: Session, find: Callable[[str], UUID]) -> None:
    assert find_problems(db_connection) == []
    moves = {"use": find("other"), "install": find("install")}
    for name, parent in moves.items():
        db_connection.execute(update(Chunk).where(Chunk.text == name).values(parent_chunk_id=parent))
    db_connection.execute(update(Chunk).where(Chunk.text == "search").values(hierarchy_level=1))
    guide, other = (
        db_connection.scalars(select(Document.document_id).where(Document.filename == name)).one()
        for name in ("guide.md", "other.md")
    )
    found = find_problems(db_connection)
    assert {(problem.chunk_id, problem.problem) for problem in found} == {
        (find("use"), "parent_in_another_document"),
        (find("install"), "circular_reference"),
        (find("install"), "invalid_level"),
        (find("search"), "invalid_level"),
    }
    assert find_problems(db_connection, guide) == found
    assert find_problems(db_connection, other) == []
