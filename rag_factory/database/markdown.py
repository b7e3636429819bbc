"""Cut Markdown into chunks along its headings, as a tree: document, sections, paragraphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT, SECTION, PARAGRAPH = 0, 1, 2
# Between the headings of a place in a document.
ARROW = " > "


@dataclass
class Piece:
    """A chunk-to-be. level: DOCUMENT, SECTION or PARAGRAPH. parent: the index of the piece above it.

    headings: from the document's title down to the piece's own section.
    """

    text: str
    level: int
    parent: int | None
    headings: tuple[str, ...]


@dataclass
class _Section:
    headings: tuple[str, ...]
    blocks: list[str] = field(default_factory=list)


def split_markdown(text: str, title: str) -> list[Piece]:
    """Cut a document into pieces, parents before their children.

    title: for one that doesn't begin with a heading of its own.
    A piece for the document holds what stands before its first section; one for each section, at whatever
    depth, its headings and all its blocks (paragraphs, lists, tables, code); and one for each block of a
    section with several.
    """
    pieces: list[Piece] = []
    for section in _sections(text, title):
        is_document = not pieces
        own = len(pieces)
        whole = "\n\n".join([ARROW.join(section.headings), *section.blocks])
        pieces.append(
            Piece(whole, DOCUMENT if is_document else SECTION, None if is_document else 0, section.headings)
        )
        if len(section.blocks) > 1:
            pieces += [Piece(block, PARAGRAPH, own, section.headings) for block in section.blocks]
    return pieces


def _sections(text: str, title: str) -> Iterator[_Section]:
    lines = text.splitlines()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    current = _Section((title,))
    depths = [1]
    begun = False
    for position, token in enumerate(tokens):
        if token.level != 0 or token.map is None or token.nesting < 0:
            continue
        if token.type != "heading_open":
            current.blocks.append("\n".join(lines[slice(*token.map)]).strip("\n"))
            begun = True
            continue
        depth = int(token.tag.removeprefix("h"))
        heading = tokens[position + 1].content
        if not begun and depth == 1:
            current = _Section((heading,))
            begun = True
            continue
        yield current
        begun = True
        while len(depths) > 1 and depths[-1] >= depth:
            depths.pop()
        depths.append(max(depth, 2))
        current = _Section((*current.headings[: len(depths) - 1], heading))
    yield current
