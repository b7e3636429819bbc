"""The embedder that the project names: loaded, or refused with what is wrong with it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.errors import SettingsError
from rag_factory.services.corpus import load_embedder

if TYPE_CHECKING:
    from pathlib import Path

EMBEDDERS = """
from rag_factory.database.embedding import OfflineEmbedder

class Good(OfflineEmbedder):
    name = "good"
    def __init__(self):
        super().__init__(1536)

class Short(OfflineEmbedder):
    def __init__(self):
        super().__init__(768)

class NoKey:
    def __init__(self):
        raise RuntimeError("no key in OPENAI_API_KEY")

class Nameless:
    dimensions = 1536

number = 5
"""


@pytest.fixture
def embedders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with embedders."""
    (tmp_path / "embedders_of_a_test.py").write_text(EMBEDDERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "embedders_of_a_test", raising=False)
    return "embedders_of_a_test"


def test_embedder_is_loaded_by_its_name(embedders: str) -> None:
    assert load_embedder(f"{embedders}:Good").name == "good"
    assert (load_embedder(None).name, load_embedder(None).dimensions) == ("offline-1", DIMENSIONS)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no_such_module:Good", "No module named 'no_such_module'"),
        ("{}:Missing", "no attribute 'Missing'"),
        ("{}", "no attribute ''"),
        ("", "Empty module name"),
        ("{}:number", "'int' object is not callable"),
        ("{}:Nameless", "no attribute 'name'"),
        ("{}:NoKey", "no key in OPENAI_API_KEY"),
        (5, "pyproject.toml is 5, which can't be made"),
        ("{}:Short", f"of 768 dimensions; chunks.embedding has {DIMENSIONS}. Use a model of that length"),
    ],
)
def test_embedder_that_can_not_be_used_is_told(embedders: str, name: Any, match: str) -> None:
    given = name.format(embedders) if isinstance(name, str) else name
    with pytest.raises(SettingsError, match=match) as caught:
        load_embedder(given)
    assert f"embedder in [tool.rag_factory] of pyproject.toml is {given}" in str(caught.value)
