"""Markdown as a tree of pieces: nothing is lost, and each piece stands where it belongs."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rag_factory.database.markdown import DOCUMENT, PARAGRAPH, SECTION, Piece, split_markdown


def split(text: str) -> list[Piece]:
    return split_markdown(text, "name")


def sections(text: str) -> list[tuple[str, ...]]:
    """The headings of the document and its sections."""
    return [piece.headings for piece in split(text) if piece.level != PARAGRAPH]


def test_document_is_a_tree_of_sections_and_paragraphs() -> None:
    assert split("# T\n\nintro\n\n## A\n\none\n\n- two\n- three\n") == [
        Piece("T\n\nintro", DOCUMENT, None, ("T",)),
        Piece("T > A\n\none\n\n- two\n- three", SECTION, 0, ("T", "A")),
        Piece("one", PARAGRAPH, 1, ("T", "A")),
        Piece("- two\n- three", PARAGRAPH, 1, ("T", "A")),
    ]


@pytest.mark.parametrize("text", ["", "\n \n", "#\n"])
def test_empty_document_is_one_piece_of_its_name(text: str) -> None:
    assert split(text) == [Piece("name", DOCUMENT, None, ("name",))]


def test_title_alone_is_one_piece() -> None:
    assert split("# T") == [Piece("T", DOCUMENT, None, ("T",))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no title", [("name",)]),
        ("## A\n## B", [("name",), ("name", "A"), ("name", "B")]),
        ("before\n\n# T", [("name",), ("name", "T")]),
        (
            "# T\n## A\n#### B\n### C\n## D",
            [("T",), *((("T", *x.split())) for x in ("A", "A B", "A C", "D"))],
        ),
        ("# T\n### A\n## B\n### C", [("T",), ("T", "A"), ("T", "B"), ("T", "B", "C")]),
        ("# T\n## A\n# U\n## B", [("T",), ("T", "A"), ("T", "U"), ("T", "U", "B")]),
        ("T\n===\n\nA\n---\nx", [("T",), ("T", "A")]),
        ("T of\ntwo lines\n===", [("T of two lines",)]),
        ("# T #\n## `A` ##", [("T",), ("T", "`A`")]),
        ("# T\n##\nx", [("T",)]),
        ("# T\n> # quoted\n\n- # listed", [("T",)]),
    ],
)
def test_headings_are_those_above_a_section(text: str, expected: list[tuple[str, ...]]) -> None:
    assert sections(text) == expected


@pytest.mark.parametrize("fence", ["```", "~~~", "````\n```"])
def test_number_sign_in_code_is_no_heading(fence: str) -> None:
    block = f"{fence}\n# comment\n\n## another\n{fence.split(maxsplit=1)[0]}"
    assert split(f"# T\n\n{block}\n") == [Piece(f"T\n\n{block}", DOCUMENT, None, ("T",))]
    assert sections("# T\n\n    # indented") == [("T",)]
    assert split("# T\n\n    # indented\n")[0].text == "T\n\n    # indented"


def test_table_is_one_block() -> None:
    table = "| a | b |\n| --- | --- |\n| # 1 | 2 |"
    assert [piece.text for piece in split(f"# T\n{table}\n\nend")] == [f"T\n\n{table}\n\nend", table, "end"]


@pytest.mark.parametrize("end", ["---", "..."])
def test_front_matter_is_a_block_and_the_title_comes_after_it(end: str) -> None:
    front = f"---\ntitle: x\ntags: [a]\n{end}"
    assert split(f"{front}\n# T\n\n## A") == [
        Piece(f"T\n\n{front}", DOCUMENT, None, ("T",)),
        Piece("T > A", SECTION, 0, ("T", "A")),
    ]


def test_rules_around_a_text_are_no_front_matter() -> None:
    assert sections("---\n\n# T\n\n---") == [("name",), ("name", "T")]


def test_address_of_a_link_is_kept() -> None:
    [piece, *_] = split("# T\n\nSee [it][1].\n\n[1]: https://example.org/it\n")
    assert "https://example.org/it" in piece.text


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_make_no_difference(line_end: str) -> None:
    text = "---\na: b\n---\n# T\n\none\ntwo\n\n## A\n\n```\ncode\n\n```\n\n| a |\n| - |\n"
    assert split(text.replace("\n", line_end)) == split(text)


@pytest.mark.parametrize("separator", ["\f", "\v", "\x1c", "\x85", "\u2028"])
def test_what_only_python_takes_for_a_line_end_shifts_nothing(separator: str) -> None:
    pieces = split(f"# T\n\none{separator}two\n\n## A\n\nthree\n\nfour")
    assert [piece.text for piece in pieces[-2:]] == ["three", "four"]


WORDS = st.sampled_from(["alpha", "beta", "x1", "déjà", "[1]: http://a.b/c", "\f", "\u2028", "\0"])
STARTS = st.sampled_from(
    ["", "# ", "## ", "### ", "###### ", "> ", "- ", "1. ", "    ", "```", "~~~", "|", "<!--", "<p>", "  "]
)
LINES = st.one_of(
    st.tuples(STARTS, st.lists(WORDS, max_size=3)).map(lambda parts: parts[0] + " ".join(parts[1])),
    st.sampled_from(["", "---", "===", "| a | b |", "| - | - |", "-->", "***", "#", "...", "key: value"]),
    st.text(max_size=8),
)
DOCUMENTS = st.tuples(st.lists(LINES, max_size=20), st.sampled_from(["\n", "\r\n"])).map(
    lambda parts: parts[1].join(parts[0])
)


# A busy machine is no failure.
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS)
@example("---\nalpha\n---")
@example("[1]: http://a.b/c\n# alpha")
def test_every_word_is_in_a_piece_and_every_piece_below_its_parent(text: str) -> None:
    pieces = split(text)
    everything = "\n".join(piece.text for piece in pieces)
    words = re.findall(r"[a-z]{2,}|\w+", text)
    assert [word for word in words if word not in everything] == []
    assert (pieces[0].level, pieces[0].parent) == (DOCUMENT, None)
    for index, piece in enumerate(pieces[1:], 1):
        assert piece.parent is not None
        assert piece.parent < index
        parent = pieces[piece.parent]
        assert parent.level < piece.level
        assert piece.headings[: len(pieces[0].headings)] == pieces[0].headings
        if piece.level == PARAGRAPH:
            assert piece.headings == parent.headings
            assert piece.text in parent.text
    assert all(piece.text.strip() for piece in pieces)
