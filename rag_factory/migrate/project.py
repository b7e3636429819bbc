"""The project the engine works on: where its revisions are and what it asks of a database."""

from __future__ import annotations

import configparser
import tomllib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rag_factory.errors import NotReadyError, SettingsError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from alembic.config import Config

    from rag_factory.database.url import DatabaseUrl

INI = "alembic.ini"
PYPROJECT = "pyproject.toml"


@dataclass(frozen=True)
class Project:
    """A folder with an Alembic environment, configured by alembic.ini or by pyproject.toml.

    The section `[tool.rag_factory]` of pyproject.toml may set:
    extensions (default `["vector"]`): what `db.create` creates in a database.
    minimum_pgvector (default "0.8.4"): refuse a server whose pgvector is older.
    template_files (default none): files, folders or globs outside of the script folder that revisions read;
    they join the key of the test template.
    drift_ignore (default none): globs on the names of what db.drift shall not report, such as
    "extension pg_stat_statements" or "public.staging_*".
    version_table, version_table_schema: as given to Alembic's `context.configure`, if at all.

    version_schema: the schema of one tenant, which has a version table of its own.
    """

    root: Path
    version_schema: str | None = None

    @property
    def ini(self) -> Path | None:
        """The project's alembic.ini; None when pyproject.toml configures Alembic."""
        path = self.root / INI
        return path if path.is_file() else None

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        """The `[tool]` table of pyproject.toml; empty when there is no such file."""
        path = self.root / PYPROJECT
        try:
            tools = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{path} can't be read: {error}.", fix="Correct the file.") from error
        return dict(tools)

    @property
    def extensions(self) -> tuple[str, ...]:
        """Extensions that a database of this project has."""
        return tuple(self._setting("extensions", list, ["vector"]))

    @property
    def minimum_pgvector(self) -> str:
        """The oldest pgvector this project accepts; before 0.8.4, parallel HNSW builds could corrupt."""
        return str(self._setting("minimum_pgvector", str, "0.8.4"))

    @property
    def drift_ignore(self) -> tuple[str, ...]:
        """Globs on what may be in a database beside the revisions' schema."""
        return tuple(self._setting("drift_ignore", list, []))

    @property
    def version_table(self) -> tuple[str, ...]:
        """The name of Alembic's version table, with its schema first when one is set."""
        schema = self.version_schema or self._setting("version_table_schema", str, "")
        table = self._setting("version_table", str, "alembic_version")
        return (schema, table) if schema else (table,)

    def alembic_option(self, name: str) -> str | None:
        """One option of alembic.ini's main section; None when it isn't set there."""
        try:
            return self._ini.get("alembic", name, fallback=None)
        except configparser.Error as error:
            raise self._unreadable(error) from error

    @property
    def versions_folder(self) -> Path | None:
        """The folder of revision files, where it can be told without Alembic; else None."""
        location = self.alembic_option("script_location")
        special = ("version_locations", "recursive_version_locations", "sourceless")
        if not location or ":" in location or any(self.alembic_option(name) for name in special):
            return None
        return self.root / location / "versions"

    @property
    def script_folders(self) -> list[Path]:
        """All folders that migrations are made of: the script folder, and version folders elsewhere."""
        location = self.alembic_option("script_location")
        if location and ":" not in location and not self.alembic_option("version_locations"):
            return [self.root / location]
        from pathlib import Path

        from alembic.script import ScriptDirectory

        scripts = ScriptDirectory.from_config(self.alembic_config(None))
        return [Path(scripts.dir), *(Path(folder) for folder in scripts._version_locations)]

    def alembic_config(self, url: DatabaseUrl | None) -> Config:
        """Alembic's own view of the project, quiet, with the address to work on.

        Raises NotReadyError: the folder holds no Alembic environment.
        """
        import io

        from alembic.config import Config

        if self.ini is None and "alembic" not in self.pyproject:
            raise NotReadyError(
                f"{self.root} has no {INI}, and its {PYPROJECT} no [tool.alembic].",
                fix="Run the task in a project, or add one: alembic init migrations",
            )
        pyproject = self.root / PYPROJECT
        config = Config(
            file_=self.ini, toml_file=pyproject if pyproject.is_file() else None, stdout=io.StringIO()
        )
        if url is not None:
            # The ini format reads % as a reference.
            config.set_main_option("sqlalchemy.url", url.sqlalchemy.replace("%", "%%"))
        config.attributes["version_table"] = self.version_table
        return config

    @cached_property
    def _ini(self) -> configparser.ConfigParser:
        parser = configparser.ConfigParser({"here": self.root.as_posix()})
        if self.ini is not None:
            try:
                parser.read_string(self.ini.read_text(encoding="utf-8"), source=INI)
            except (OSError, UnicodeDecodeError, configparser.Error) as error:
                raise self._unreadable(error) from error
        return parser

    def _unreadable(self, error: Exception) -> SettingsError:
        reason = " ".join(str(error).split())
        return SettingsError(f"{self.ini} can't be read: {reason}.", fix="Correct the file.")

    def _setting(self, name: str, kind: type, default: Any) -> Any:
        value = self.pyproject.get("rag_factory", {}).get(name, default)
        if not isinstance(value, kind):
            raise UsageError(
                f"[tool.rag_factory] {name} in {PYPROJECT} is {value!r}, not a {kind.__name__}.",
                fix=f"Write it like {name} = {default!r}",
            )
        return value
