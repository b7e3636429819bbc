"""docs/howto/use-an-embedding-model.md: its class is an embedder, and what it says is so."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.services.corpus import load_embedder

if TYPE_CHECKING:
    from rag_factory.database.embedding import Embedder

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "howto" / "use-an-embedding-model.md").read_text(encoding="utf-8")


class Client:
    """What the service's client does, as far as the class asks it: it counts what it is given at a time."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.embeddings = self

    def create(self, *, model: str, input: list[str]) -> SimpleNamespace:  # noqa: A002 - the service's name
        assert model == "text-embedding-3-small"
        assert isinstance(input, list)
        self.asked.append(len(input))
        return SimpleNamespace(data=[SimpleNamespace(embedding=[float(text)]) for text in input])


@pytest.fixture
def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    """The how-to's class, loaded by the name that it gives in pyproject.toml."""
    package: Any = ModuleType("openai")
    package.OpenAI = Client
    monkeypatch.setitem(sys.modules, "openai", package)
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    [settings] = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    name = tomllib.loads(settings)["tool"]["rag_factory"]["embedder"]
    # The folder of the how-to's module, under a name that no other test has.
    folder, _, rest = name.partition(".")
    (tmp_path / f"{folder}_of_the_howto").mkdir()
    (tmp_path / f"{folder}_of_the_howto" / f"{rest.partition(':')[0]}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return load_embedder(f"{folder}_of_the_howto.{rest}")


def test_class_is_an_embedder(embedder: Embedder) -> None:
    assert (embedder.name, embedder.dimensions) == ("text-embedding-3-small", DIMENSIONS)
    texts = [str(number) for number in range(600)]
    assert embedder.embed(texts) == [[float(text)] for text in texts]
    assert embedder.embed([]) == []
    client: Client = vars(embedder)["_client"]
    assert client.asked == [256, 256, 88]


def test_extra_is_one_of_the_project() -> None:
    [extra] = re.findall(r"--extra (\w+)", TEXT)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(each.startswith("openai>=") for each in project["optional-dependencies"][extra])


def test_files_that_it_names_are_there() -> None:
    paths = set(re.findall(r"`(\w+/\w+/[\w/]+\.py)`", TEXT))
    assert paths
    for path in paths:
        assert (ROOT / path).is_file(), path
    [models] = [path for path in paths if path.endswith("documents.py")]
    assert f"\nDIMENSIONS = {DIMENSIONS}" in (ROOT / models).read_text(encoding="utf-8")
