"""The settings that tests need, read without what validates settings where there is nothing to validate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rag_factory.database.sources import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rag_factory.database.config import DatabaseConfig
    from rag_factory.database.sources import Found

TestSettings: TypeAlias = "DatabaseConfig | PlainSettings"
_SWITCHES = {"true": True, "false": False}


@dataclass(frozen=True)
class PlainSettings:
    """The settings of a run on the embedded test server, with DatabaseConfig's names and defaults.

    Importing that takes as long as fifty small tests.
    """

    root: Path
    app_env: Literal["development"] = "development"
    protected: bool = False
    url: None = None
    read_url: None = None
    test_url: None = None
    test_database_any_name: bool = False
    db_connect_timeout_seconds: int = 10
    embedded_data_folder: Path = Path(".rag_factory/server")
    postgres_bin_folder: None = None
    run_db_tests: bool = True
    run_integration_tests: bool = True
    run_llm_tests: bool = False
    _found: Mapping[str, Found] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where a setting was found."""
        return self._found[name].origin if name in self._found else "default"


def read_test_settings(root: Path) -> TestSettings:
    """Read the settings of the project at `root` for its tests.

    Raises SettingsError or ProblemsError: every problem at once.
    """
    found, problems = read_settings(root, for_tests=True)
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name == "EMBEDDED_DATA_FOLDER" and "://" not in value.text:
            values[name.lower()] = Path(value.text.strip())
        elif name.startswith("RUN_") and value.text in _SWITCHES:
            values[name.lower()] = _SWITCHES[value.text]
    if not problems and len(values) == len(found):
        return PlainSettings(root, _found=found, **values)
    from rag_factory.database.config import DatabaseConfig

    return DatabaseConfig.load(root, for_tests=True)
