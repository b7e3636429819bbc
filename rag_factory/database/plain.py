"""The settings at their defaults, for those who must not wait for what validates settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rag_factory.database.config import DatabaseConfig
    from rag_factory.database.sources import Found

Settings: TypeAlias = "DatabaseConfig | PlainSettings"


@dataclass(frozen=True)
class PlainSettings:
    """The settings of a run of tests on the embedded test server, with DatabaseConfig's names and defaults.

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
    db_lock_timeout_seconds: float = 5
    db_statement_timeout_seconds: float = 0
    db_lock_retries: int = 10
    backup_folder: Path = Path("backups")
    embedded_data_folder: Path = Path(".rag_factory/server")
    postgres_bin_folder: None = None
    run_db_tests: bool = True
    run_integration_tests: bool = True
    run_llm_tests: bool = False
    _found: Mapping[str, Found] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where a setting was found."""
        return self._found[name].origin if name in self._found else "default"
