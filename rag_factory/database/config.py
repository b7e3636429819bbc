"""The settings: the only reader of the environment.

`DatabaseConfig.load(root)` reads them once; whoever needs a setting is handed the object.
"""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rag_factory.database.sources import Found, read_sources
from rag_factory.database.url import MASK, DatabaseUrl
from rag_factory.errors import ProblemsError, RagFactoryError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

Environment = Literal["development", "test", "staging", "production"]
PROTECTED: frozenset[Environment] = frozenset({"staging", "production"})
PARTS = ("db_host", "db_port", "db_name", "db_user", "db_password")
DEFAULT_DATABASE = "app"


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


class DatabaseConfig(BaseSettings):
    """Every setting, validated. A field's upper-case name is its variable.

    The URLs are texts here, as given; `url`, `read_url` and `test_url` are their parsed forms.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    app_env: Annotated[Environment, BeforeValidator(_lower)] = Field(
        "development", description="development, test, staging or production; the last two are protected."
    )
    database_url: SecretStr | None = Field(
        None, description="The application's database. Unset: the embedded server."
    )
    database_read_url: SecretStr | None = Field(
        None, description="A read replica for read-only sessions. Unset: the primary."
    )
    test_database_url: SecretStr | None = Field(
        None, description="The server for tests. Unset: an embedded, disposable test server."
    )
    db_host: str | None = Field(None, description="The server's host, when no URL is given.")
    db_port: int = Field(5432, ge=1, le=65535, description="The server's port, with DB_HOST.")
    db_name: str = Field(
        DEFAULT_DATABASE,
        min_length=1,
        max_length=63,
        description="The database's name, with DB_HOST or on the embedded server.",
    )
    db_user: str | None = Field(None, description="The role to connect as, with DB_HOST.")
    db_password: SecretStr | None = Field(None, description="That role's password, with DB_HOST.")
    host_ip: str | None = Field(None, description="For ${HOST_IP} inside .env: a VM reaching its host.")
    db_pool_size: int = Field(5, ge=1, description="Connections that the pool keeps open.")
    db_max_overflow: int = Field(10, ge=0, description="Connections beyond the pool's size under load.")
    db_pool_timeout_seconds: float = Field(30, gt=0, description="How long to wait for a connection.")
    db_connect_timeout_seconds: int = Field(10, ge=2, description="How long to wait for the server.")
    db_lock_timeout_seconds: float = Field(
        5, gt=0, description="How long a migration's statement may wait for a lock, and hold up others."
    )
    db_statement_timeout_seconds: float = Field(
        0, ge=0, description="How long one statement of a migration may run; 0: for ever."
    )
    backup_folder: Path = Field(Path("backups"), description="Where backups go, from the project's root.")
    embedding_dimensions: int = Field(
        1536, ge=1, le=16000, description="The length of the vectors in chunks.embedding."
    )
    embedded_data_folder: Path = Field(
        Path(".rag_factory/server"),
        description="Where the embedded server keeps its data, from the project's root.",
    )
    postgres_bin_folder: Path | None = Field(
        None, description="PostgreSQL's programs to use instead of the embedded ones."
    )
    run_db_tests: bool = Field(True, description="Run the tests that need a database.")
    run_integration_tests: bool = Field(True, description="Run the integration tests.")
    run_llm_tests: bool = Field(False, description="Run the tests that call a language model.")

    _root: Path = PrivateAttr(default_factory=Path)
    _found: dict[str, Found] = PrivateAttr(default_factory=dict)
    _urls: dict[str, DatabaseUrl] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, root: Path, *, for_tests: bool = False) -> Self:
        """Read the settings of the project at `root`.

        for_tests: lay `tests/.env.test` over `.env`. `TEST_DATABASE_URL` is always read that way, so that
        everyone agrees on where the tests run.
        Raises SettingsError or ProblemsError: every problem at once, each naming its variable and origin.
        """
        files = {
            root / "tests" / ".env.test": _NAMES if for_tests else frozenset({"TEST_DATABASE_URL"}),
            root / ".env": _NAMES,
        }
        found = read_sources(root, files, _NAMES)
        try:
            config = cls.model_validate({name.lower(): value.text for name, value in found.items()})
        except ValidationError as error:
            raise _together([_explain(detail, found) for detail in error.errors()]) from None
        config._root = root
        config._found = found
        config._parse_urls()
        return config

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the reading to `read_sources`, which also knows where each value came from."""
        return (init_settings,)

    @property
    def root(self) -> Path:
        """The project's root folder; relative folders among the settings start there."""
        return self._root

    @property
    def url(self) -> DatabaseUrl | None:
        """The application's database; None for the embedded server."""
        return self._urls.get("DATABASE_URL")

    @property
    def read_url(self) -> DatabaseUrl | None:
        """The read replica, or the primary."""
        return self._urls.get("DATABASE_READ_URL", self.url)

    @property
    def test_url(self) -> DatabaseUrl | None:
        """The server for tests; None for the embedded test server."""
        return self._urls.get("TEST_DATABASE_URL")

    @property
    def protected(self) -> bool:
        """Whether destructive tasks need the database's name typed out."""
        return self.app_env in PROTECTED

    def origin(self, name: str) -> str:
        """Where the variable's value came from: the environment, a file's name, or `default`."""
        found = self._found.get(name)
        return found.origin if found else "default"

    def shown(self) -> dict[str, str]:
        """Each variable and its value for human eyes, in the order of declaration. No secret in it."""
        values = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            variable = name.upper()
            if variable in self._urls and variable in self._found:
                values[variable] = self._urls[variable].masked
            elif isinstance(value, SecretStr):
                values[variable] = MASK
            else:
                values[variable] = "" if value is None else str(value)
        return values

    def _parse_urls(self) -> None:
        """Parse the URLs and hold them against the parts."""
        problems: list[RagFactoryError] = []
        for name in ("DATABASE_URL", "DATABASE_READ_URL", "TEST_DATABASE_URL"):
            text = getattr(self, name.lower())
            if text is None:
                continue
            try:
                self._urls[name] = self._parse_url(name, text.get_secret_value())
            except SettingsError as problem:
                problems.append(problem)
        given = [part.upper() for part in PARTS if part.upper() in self._found]
        if self.database_url is None:
            problems += self._take_parts(given)
        elif self.url is not None:
            problems += self._hold_against_url(self.url, given)
        if problems:
            raise _together(problems)

    def _parse_url(self, name: str, text: str) -> DatabaseUrl:
        url = DatabaseUrl.parse(text, name=f"{name} ({self.origin(name)})")
        if not url.database and name != "TEST_DATABASE_URL":
            raise SettingsError(
                f"{name} ({self.origin(name)}) names no database: {url}.",
                fix="Add its name at the end: postgresql://…/app",
            )
        return url

    def _take_parts(self, given: Sequence[str]) -> Sequence[RagFactoryError]:
        """Make the URL of the parts. DB_NAME alone names the embedded server's database."""
        if self.db_host is None:
            lonely = [f"{name} ({self.origin(name)})" for name in given if name != "DB_NAME"]
            if not lonely:
                return ()
            return (
                SettingsError(
                    f"{' and '.join(lonely)} set, but not DB_HOST.",
                    fix="Set DB_HOST (this machine: localhost), or unset the others for the embedded server.",
                ),
            )
        self._urls["DATABASE_URL"] = DatabaseUrl(
            host=self.db_host,
            port=self.db_port,
            database=self.db_name,
            user=self.db_user or getpass.getuser(),
            password=self.db_password.get_secret_value() if self.db_password else "",
        )
        return ()

    def _hold_against_url(self, url: DatabaseUrl, given: Sequence[str]) -> Sequence[RagFactoryError]:
        """Find the parts that contradict the URL."""
        in_url: dict[str, str] = {
            "DB_HOST": url.host,
            "DB_PORT": str(url.port or 5432),
            "DB_NAME": url.database,
            "DB_USER": url.user,
            "DB_PASSWORD": url.password,
        }
        problems = []
        for name in given:
            part = getattr(self, name.lower())
            text = part.get_secret_value() if isinstance(part, SecretStr) else str(part)
            if text == in_url[name]:
                continue
            differ = (
                "" if name == "DB_PASSWORD" else f": {in_url[name] or 'none'} in the URL, {text} in {name}"
            )
            problems.append(
                SettingsError(
                    f"DATABASE_URL ({self.origin('DATABASE_URL')}) and {name} ({self.origin(name)}) "
                    f"disagree{differ}.",
                    fix=f"Remove {name}: the URL says it all.",
                )
            )
        return problems


_NAMES = frozenset(name.upper() for name in DatabaseConfig.model_fields)
_REQUIREMENTS = {
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
}


def _explain(detail: Any, found: dict[str, Found]) -> SettingsError:
    """One finding of pydantic's in our words."""
    name = str(detail["loc"][0])
    variable = name.upper()
    value = found[variable]
    field = DatabaseConfig.model_fields[name]
    requirement = _REQUIREMENTS.get(detail["type"]) or detail["msg"].replace("Input should", "must").replace(
        "String should", "must"
    )
    secret = field.annotation in (SecretStr, SecretStr | None)
    return SettingsError(
        f"{variable} ({value.origin}) is {MASK if secret else repr(value.text)}: it {requirement}.",
        fix=field.description,
    )


def _together(problems: Sequence[RagFactoryError]) -> RagFactoryError:
    return problems[0] if len(problems) == 1 else ProblemsError(problems)
