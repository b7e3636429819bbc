"""Where settings come from: the process environment, `tests/.env.test`, `.env`; in this order."""

from __future__ import annotations

import io
import os
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.database.url import mask
from rag_factory.errors import RagFactoryError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENVIRONMENT = "environment"
OLD_NAMES = {
    "DB_DATABASE_URL": "DATABASE_URL",
    "DATABASE_TEST_URL": "TEST_DATABASE_URL",
    "DB_TEST_DATABASE_URL": "TEST_DATABASE_URL",
}
PARTS = ("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD")
# What leads to the application's database: not for code under test to read from a developer's .env.
_APPLICATION = frozenset({"APP_ENV", "DATABASE_URL", "DATABASE_READ_URL", *PARTS})
# Those of DatabaseConfig, which takes longer to import than to list.
NAMES = _APPLICATION | {
    "BACKUP_FOLDER", "BACKUPS_KEPT", "DB_CONNECT_TIMEOUT_SECONDS", "DB_LOCK_RETRIES",
    "DB_LOCK_TIMEOUT_SECONDS", "DB_MAX_OVERFLOW", "DB_POOL_SIZE", "DB_POOL_TIMEOUT_SECONDS",
    "DB_PREPARE_STATEMENTS", "DB_STATEMENT_TIMEOUT_SECONDS", "EMBEDDED_DATA_FOLDER", "HOST_IP",
    "POSTGRES_BIN_FOLDER", "RUN_DB_TESTS",
    "RUN_INTEGRATION_TESTS", "RUN_LLM_TESTS", "TEST_DATABASE_ANY_NAME", "TEST_DATABASE_URL",
}  # fmt: skip
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")


class RenamedSettingWarning(FutureWarning):
    """A setting was given under a name it no longer has. Shown to users, not only to developers."""


@dataclass(frozen=True)
class Found:
    """One setting as it was found. text: the raw value, secrets included; origin: where it stood."""

    text: str
    origin: str

    def __repr__(self) -> str:
        return f"Found(origin={self.origin!r})"


@dataclass(frozen=True)
class _Value:
    """A value in a file. literal: it stands in single quotes, where nothing is replaced."""

    text: str
    literal: bool


def read_settings(root: Path, *, for_tests: bool = False) -> tuple[dict[str, Found], list[RagFactoryError]]:
    """Read every setting of the project at `root` that is given somewhere; see `read_sources`.

    for_tests: lay `tests/.env.test` over `.env`. `TEST_DATABASE_URL` is always read that way, so that
    everyone agrees on where the tests run.
    """
    in_test = os.environ.get("APP_ENV", "").strip().lower() == "test"
    files = {
        root / "tests" / ".env.test": NAMES if for_tests else frozenset({"TEST_DATABASE_URL"}),
        root / ".env": NAMES - _APPLICATION if in_test else NAMES,
    }
    return read_sources(root, files, NAMES)


def read_sources(
    root: Path, files: Mapping[Path, frozenset[str]], names: frozenset[str]
) -> tuple[dict[str, Found], list[RagFactoryError]]:
    """Read every setting of these names that is given somewhere. The environment wins, then earlier files.

    files: each with the names that may be taken from it.
    An empty value counts as not given. `${NAME}` and `${NAME:-default}` in a file are replaced from the
    environment, the file itself and the files after it. Old names are read with a RenamedSettingWarning.
    Returns what was found, and what was wrong: a file that can't be read, a value that refers to nothing.
    """
    problems: list[RagFactoryError] = []
    layers = [{name: Found(text, ENVIRONMENT) for name, text in os.environ.items()}]
    scope: dict[str, _Value] = {}
    for path, allowed in reversed(list(files.items())):
        shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        try:
            values = _read_file(path, shown)
        except SettingsError as problem:
            problems.append(problem)
            continue
        scope |= {name: value for name, value in values.items() if value.text}
        wanted = _with_old_names(allowed) & values.keys()
        layers.insert(
            1, _expand({name: values[name] for name in values if name in wanted}, scope, shown, problems)
        )
    wanted = _with_old_names(names)
    found: dict[str, Found] = {}
    for layer in reversed(layers):
        given = {name: value for name, value in layer.items() if name in wanted and value.text.strip()}
        found |= _rename(given, problems)
    return found, problems


def _with_old_names(names: frozenset[str]) -> frozenset[str]:
    return names | {old for old, new in OLD_NAMES.items() if new in names}


def _read_file(path: Path, shown: str) -> dict[str, _Value]:
    """Parse one dotenv file; a file that isn't there is empty."""
    text = _read_text(path, shown)
    if not text:
        return {}
    # Imported here: a process without such files, as in production, doesn't pay for the parser.
    from dotenv.parser import parse_stream

    bindings = list(parse_stream(io.StringIO(text)))
    broken = [str(binding.original.line) for binding in bindings if binding.error]
    if broken:
        # The line itself may hold a password, so only its number is told.
        raise SettingsError(
            f"{shown} can't be read: line {', '.join(broken)} is not NAME=value.",
            fix='Put values with spaces, quotes or # in double quotes: NAME="value".',
        )
    values = {}
    for binding in bindings:
        if binding.key:
            raw = binding.original.string.partition("=")[2]
            values[binding.key] = _Value(binding.value or "", raw.lstrip().startswith("'"))
    return values


def _read_text(path: Path, shown: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not path.is_symlink():
            return ""
        raise SettingsError(
            f"{shown} can't be read: {error.strerror}.", fix=f"Make {path} a file that this user can read."
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Not as its cause: that holds the whole file, passwords included.
        fault = f"byte {error.start} is not UTF-8"
    else:
        if "\0" not in text:
            return text.replace("\r\n", "\n")
        fault = "it holds a NUL byte"
    raise SettingsError(f"{shown} can't be read: {fault}.", fix="Save it as UTF-8.")


def _expand(
    values: Mapping[str, _Value], scope: Mapping[str, _Value], shown: str, problems: list[RagFactoryError]
) -> dict[str, Found]:
    """Replace the references in a file's values. Leaves out a value that refers to nothing."""
    missing: list[str] = []

    def expand(name: str, value: _Value, inside: tuple[str, ...], secret: bool) -> str:
        if value.literal:
            return value.text
        may_be_secret = "://" in value.text or "PASSWORD" in name
        visible = mask(value.text) if may_be_secret else value.text

        def resolve(match: re.Match[str]) -> str:
            other, default = match.groups()
            hidden = secret or match.group() not in visible
            known = other in scope and other not in inside
            text = os.environ.get(other) or (known and expand(other, scope[other], (*inside, other), hidden))
            if text:
                return text
            if default is None and not known:
                # A password with a "${" of its own is no reference, and no part of it is told.
                missing.append(f"{inside[0]} uses {'${…} in its password' if hidden else match.group()}")
            return default or ""

        return _REFERENCE.sub(resolve, value.text)

    found = {}
    for name, value in values.items():
        before = len(missing)
        text = expand(name, value, (name,), secret=False)
        if len(missing) == before:
            found[name] = Found(text, shown)
    if missing:
        problems.append(
            SettingsError(
                f"{shown} refers to a variable that is not set: {', '.join(missing)}.",
                fix=f"Set it in the environment or in {shown}; a password with a ${{ goes in single quotes.",
            )
        )
    return found


def _rename(given: dict[str, Found], problems: list[RagFactoryError]) -> dict[str, Found]:
    """Move values given under old names to their new ones."""
    for old, new in OLD_NAMES.items():
        if old not in given:
            continue
        value = given.pop(old)
        warnings.warn(
            f"{old} ({value.origin}) is the old name of {new}. Rename it: the old name will go.",
            RenamedSettingWarning,
            stacklevel=2,
        )
        if new in given and given[new].text.strip() != value.text.strip():
            problems.append(
                SettingsError(
                    f"{new} ({given[new].origin}) and its old name {old} ({value.origin}) disagree.",
                    fix=f"Remove {old}.",
                )
            )
        given.setdefault(new, Found(value.text, f"{value.origin}, as {old}"))
    return given
