"""Cut Markdown into chunks along its headings, as a tree: document, sections, paragraphs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCUMENT, SECTION, PARAGRAPH = 0, 1, 2
# Between the headings of a place in a document.
ARROW = " > "
# Where the parser ends a line; str.splitlines would also do so at a form feed, say.
_LINE_END = re.compile(r"\r\n?|\n")
# Settings before the text, which aren't Markdown: its second --- would make the last of them a heading.
_FRONT_MATTER = re.compile(r"---[ \t]*\n(?:[^\n]*\S[^\n]*\n)+?(?:---|\.\.\.)[ \t]*(?:\n|\Z)")


@dataclass(frozen=True)
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
    """Cut a document into pieces, parents before their children. Each word of it is in some piece.

    title: for one that doesn't begin with a heading of its own.
    A piece for the document holds what stands before its first section; one for each section, at whatever
    depth, its headings and all its blocks (paragraphs, lists, tables, code); and one for each block of a
    section with several.
    """
    pieces: list[Piece] = []
    for section in _sections(_LINE_END.sub("\n", text), title):
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
    current = _Section((title,))
    if front_matter := _FRONT_MATTER.match(text):
        current.blocks.append(front_matter[0].strip())
        text = text[front_matter.end() :]
    depths = [0]  # of current.headings; the document's title is above all
    begun = False
    for depth, block in _blocks(text):
        if not depth:
            current.blocks.append(block)
        elif depth == 1 and not begun:
            current.headings = (block,)
        else:
            yield current
            while depths[-1] >= depth:
                depths.pop()
            current = _Section((*current.headings[: len(depths)], block))
            depths.append(depth)
        begun = True
    yield current


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """The blocks on the outermost level, each after its depth: 1 to 6 of a heading, 0 of anything else."""
    lines = text.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    end = 0
    for position, token in enumerate(tokens):
        if token.level != 0 or token.map is None or token.nesting < 0:
            continue
        start = token.map[0]
        # What the parser gives no token: where a link's address is defined.
        yield from _text_block(lines[end:start])
        end = token.map[1]
        heading = " ".join(tokens[position + 1].content.split()) if token.type == "heading_open" else ""
        if heading:
            yield int(token.tag.removeprefix("h")), heading
        elif token.type != "heading_open":
            yield from _text_block(lines[start:end])
    yield from _text_block(lines[end:])


def _text_block(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    block = "\n".join(lines).strip("\n")
    if block.strip():
        yield 0, block
