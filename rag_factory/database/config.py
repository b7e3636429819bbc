"""The settings: the only reader of the environment.

`DatabaseConfig.load(root)` reads them once; whoever needs a setting is handed the object.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rag_factory.database.sources import NAMES, PARTS, Found, read_settings
from rag_factory.database.url import MASK, DatabaseUrl, mask
from rag_factory.errors import ProblemsError, RagFactoryError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

Environment = Literal["development", "test", "staging", "production"]
PROTECTED: frozenset[Environment] = frozenset({"staging", "production"})
URLS = ("DATABASE_URL", "DATABASE_READ_URL", "TEST_DATABASE_URL")
DEFAULT_DATABASE = "app"


# The longest time that PostgreSQL's own settings in milliseconds can hold, 24 days.
_LONGEST_SECONDS = 2_147_483


class DatabaseConfig(BaseSettings):
    """Every setting, validated. A field's upper-case name is its variable.

    The URLs are texts here, as given; `url`, `read_url` and `test_url` are their parsed forms.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    app_env: Environment = Field(
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
    db_host: str | None = Field(
        None,
        pattern=r"^(/[^,]*|[^\s,:/@]+|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%\w+)?)$",
        description="The server's host, when no URL is given. Its port goes in DB_PORT.",
    )
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
    db_pool_timeout_seconds: float = Field(
        30, gt=0, le=_LONGEST_SECONDS, description="How long to wait for a connection."
    )
    db_connect_timeout_seconds: int = Field(
        10, ge=2, le=_LONGEST_SECONDS, description="How long to wait for the server."
    )
    db_prepare_statements: bool = Field(
        True, description="Prepare repeated statements; false behind a PgBouncer that can't keep them."
    )
    # PostgreSQL rounds to milliseconds, and reads 0 as no limit.
    db_lock_timeout_seconds: float = Field(
        5,
        ge=0.001,
        le=_LONGEST_SECONDS,
        description="How long a migration's statement may wait for a lock, and hold up others.",
    )
    db_statement_timeout_seconds: float = Field(
        0,
        ge=0,
        le=_LONGEST_SECONDS,
        description="How long one statement of a migration may run; 0: for ever.",
    )
    db_lock_retries: int = Field(
        10, ge=0, le=1000, description="How often a revision that met a lock is tried again."
    )
    backup_folder: Path = Field(Path("backups"), description="Where backups go, from the project's root.")
    backups_kept: int = Field(
        10, ge=0, description="How many backups of a database stay when a new one is made; 0: all."
    )
    embedded_data_folder: Path = Field(
        Path(".rag_factory/server"),
        description="Where the embedded server keeps its data, from the project's root.",
    )
    postgres_bin_folder: Path | None = Field(
        None, description="PostgreSQL's programs to use instead of the embedded ones."
    )
    test_database_any_name: bool = Field(
        False, description="Let tests run on a database whose name doesn't hold the word test."
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

        for_tests: lay `tests/.env.test` over `.env`.
        Raises SettingsError or ProblemsError: every problem at once, each naming its variable and origin.
        """
        config, problems, _ = cls.examine(root, for_tests=for_tests)
        if len(problems) > 1:
            raise ProblemsError(problems)
        if problems:
            raise problems[0]
        return config

    @classmethod
    def examine(
        cls, root: Path, *, for_tests: bool = False
    ) -> tuple[Self, Sequence[RagFactoryError], frozenset[str]]:
        """Read the settings as far as they can be read.

        Returns them, with the default of each that is wrong; every problem; and the variables that can't be
        relied on, because of their own fault or because a file is unreadable that may set them.
        """
        found, problems = read_settings(root, for_tests=for_tests)
        doubtful = set(NAMES) if problems else set()
        values = {name.lower(): value.text for name, value in found.items()}
        config, wrong = cls._validate(values)
        for detail in wrong:
            field = str(detail["loc"][0])
            problems.append(_explain(detail, found))
            doubtful.add(field.upper())
            del values[field]
        if config is None:
            config = cls.model_validate(values)
        config._root = root
        config._found = {name: value for name, value in found.items() if name.lower() in values}
        for name, problem in config._parse_urls(doubtful):
            problems.append(problem)
            doubtful.add(name)
        return config, problems, frozenset(doubtful)

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: Any, info: ValidationInfo) -> Any:
        """Take the white space around a value away, and refuse a URL, secrets and all, where none belongs."""
        if not isinstance(value, str):
            return value
        if any(
            "\ud800" <= character <= "\udfff" for character in value
        ):  # how Python keeps undecodable bytes
            raise ValueError("must be UTF-8 text")
        if info.field_name == "db_password":
            return value
        if "://" in value and info.field_name not in _SECRETS:
            raise ValueError("must not be a URL")
        return value.strip().lower() if info.field_name == "app_env" else value.strip()

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

    @classmethod
    def _validate(cls, values: Mapping[str, str]) -> tuple[Self | None, Sequence[Any]]:
        """The settings, or what pydantic finds wrong. Its exception is left here: it carries passwords."""
        try:
            return cls.model_validate(values), ()
        except ValidationError as error:
            return None, error.errors()

    def _parse_urls(self, doubtful: Collection[str]) -> list[tuple[str, SettingsError]]:
        """Parse the URLs and hold them against the parts. Returns each problem with what it spoils."""
        problems: list[tuple[str, SettingsError]] = []
        for name in URLS:
            text = getattr(self, name.lower())
            if text is None:
                continue
            try:
                self._urls[name] = self._parse_url(name, text.get_secret_value())
            except SettingsError as problem:
                problems.append((name, problem))
        given = [part for part in PARTS if part in self._found]
        if self.url is not None:
            problems += [("DATABASE_URL", problem) for problem in self._hold_against_url(self.url, given)]
        elif self.database_url is None and not {"DATABASE_URL", "DB_HOST"} & set(doubtful):
            problems += [("DATABASE_URL", problem) for problem in self._take_parts(given)]
        return problems

    def _parse_url(self, name: str, text: str) -> DatabaseUrl:
        url = DatabaseUrl.parse(text, name=f"{name} ({self.origin(name)})")
        if not url.database and name != "TEST_DATABASE_URL":
            raise SettingsError(
                f"{name} ({self.origin(name)}) names no database: {url}.",
                fix="Add its name at the end: postgresql://…/app",
            )
        return url

    def _take_parts(self, given: Sequence[str]) -> Sequence[SettingsError]:
        """Make the URL of the parts. DB_NAME alone names the embedded server's database."""
        if self.db_host is None:
            lonely = [f"{name} ({self.origin(name)})" for name in given if name != "DB_NAME"]
            if not lonely:
                return ()
            return (
                SettingsError(
                    f"Set without DB_HOST: {', '.join(lonely)}.",
                    fix="Set DB_HOST (this machine: localhost), or unset the others for the embedded server.",
                ),
            )
        self._urls["DATABASE_URL"] = DatabaseUrl(
            host=self.db_host.lower() if not self.db_host.startswith("/") else self.db_host,
            port=self.db_port,
            database=self.db_name,
            user=self.db_user or "",
            password=self.db_password.get_secret_value() if self.db_password else "",
        )
        return ()

    def _hold_against_url(self, url: DatabaseUrl, given: Sequence[str]) -> Sequence[SettingsError]:
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
            if text == in_url[name] or (name == "DB_HOST" and text.lower() == url.host.lower()):
                continue
            differ = (
                "" if name == "DB_PASSWORD" else f": {in_url[name] or 'none'} in the URL, {text} in {name}"
            )
            problems.append(
                SettingsError(
                    f"DATABASE_URL ({self.origin('DATABASE_URL')}) and {name} ({self.origin(name)}) "
                    f"disagree{differ}.",
                    fix=f"Remove {name} and let the URL say it, or give all in parts without DATABASE_URL.",
                )
            )
        return problems


_SECRETS = frozenset(name.lower() for name in (*URLS, "DB_PASSWORD"))
_REQUIREMENTS = {
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_parsing": "must be a number",
    "string_pattern_mismatch": "must be one host's name or address, or the absolute folder of its socket",
}


def _explain(detail: Any, found: Mapping[str, Found]) -> SettingsError:
    """One finding of pydantic's in our words."""
    name = str(detail["loc"][0])
    variable = name.upper()
    value = found[variable]
    requirement = _REQUIREMENTS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").replace(
        "Input should", "must"
    ).replace("String should", "must")
    shown = MASK if name in _SECRETS else repr(mask(value.text) if "://" in value.text else value.text)
    return SettingsError(
        f"{variable} ({value.origin}) is {shown}: it {requirement}.",
        fix=DatabaseConfig.model_fields[name].description,
    )
