"""The settings of a test run: the same as the application's reader gives, by a shorter way."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.plain import PlainSettings
from rag_factory.database.sources import NAMES
from rag_factory.errors import SettingsError
from rag_factory.testing.settings import read_test_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_every_setting_is_listed_where_listing_costs_nothing() -> None:
    assert {name.upper() for name in DatabaseConfig.model_fields} == NAMES


@pytest.mark.parametrize(
    "file", ["", "EMBEDDED_DATA_FOLDER= elsewhere/server\nRUN_DB_TESTS=false\nRUN_LLM_TESTS=true\n"]
)
def test_short_way_gives_what_the_long_one_gives(tmp_path: Path, file: str) -> None:
    (tmp_path / ".env").write_text(file)
    short, long = read_test_settings(tmp_path), DatabaseConfig.load(tmp_path, for_tests=True)
    assert isinstance(short, PlainSettings)
    for field in fields(PlainSettings):
        if not field.name.startswith("_"):
            assert getattr(short, field.name) == getattr(long, field.name), field.name
    for name in NAMES:
        assert short.origin(name) == long.origin(name), name


@pytest.mark.parametrize(
    "given", ["APP_ENV=test", "RUN_DB_TESTS=0", "TEST_DATABASE_URL=postgresql://h/a_test"]
)
def test_whatever_needs_judgement_goes_the_long_way(tmp_path: Path, given: str) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / ".env.test").write_text(given)
    assert isinstance(read_test_settings(tmp_path), DatabaseConfig)


@pytest.mark.parametrize("given", ["RUN_DB_TESTS=perhaps", "EMBEDDED_DATA_FOLDER=http://x", "no setting"])
def test_what_is_wrong_is_refused_as_ever(tmp_path: Path, given: str) -> None:
    (tmp_path / ".env").write_text(given)
    with pytest.raises(SettingsError):
        read_test_settings(tmp_path)
