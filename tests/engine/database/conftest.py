"""An empty project, and a process without settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.sources import OLD_NAMES

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Gives settings in each way there is, and reads them."""

    root: Path
    patch: pytest.MonkeyPatch

    def process(self, **variables: str) -> None:
        for name, text in variables.items():
            self.patch.setenv(name, text)

    def file(self, content: str | bytes) -> None:
        (self.root / ".env").write_bytes(content.encode() if isinstance(content, str) else content)

    def test_file(self, content: str) -> None:
        (self.root / "tests" / ".env.test").write_text(content, encoding="utf-8")

    def load(self, *, for_tests: bool = False) -> DatabaseConfig:
        return DatabaseConfig.load(self.root, for_tests=for_tests)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [*map(str.upper, DatabaseConfig.model_fields), *OLD_NAMES]:
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "project"
    (root / "tests").mkdir(parents=True)
    return Settings(root, monkeypatch)
