"""The generated reference is what the code would write now, and says all that there is."""

from __future__ import annotations

from docs.generate import CODES, generate
from rag_factory import errors
from tests.conftest import ROOT


def test_reference_is_of_this_code() -> None:
    written = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")}
    made = generate()
    assert written.keys() >= made.keys()
    stale = [path.name for path, text in made.items() if written[path] != text]
    assert stale == [], "write it anew: uv run python -m docs.generate"


def test_every_exit_code_is_explained() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")]
    assert {kind.exit_code for kind in kinds} | {0, 130, 143} == set(CODES)
    assert set(CODES) - {130, 143} == set(range(11)), "as the README's table"
