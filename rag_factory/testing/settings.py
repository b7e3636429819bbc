"""The settings that tests need, read without what validates settings where there is nothing to validate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_factory.database.plain import PlainSettings
from rag_factory.database.sources import read_settings

if TYPE_CHECKING:
    from rag_factory.database.plain import Settings

_SWITCHES = {"true": True, "false": False}


def read_test_settings(root: Path) -> Settings:
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
