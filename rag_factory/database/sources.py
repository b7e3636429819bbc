"""Where settings come from: the process environment, `tests/.env.test`, `.env`; in this order."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.errors import ProblemsError, RagFactoryError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENVIRONMENT = "environment"
OLD_NAMES = {
    "DB_DATABASE_URL": "DATABASE_URL",
    "DATABASE_TEST_URL": "TEST_DATABASE_URL",
    "DB_TEST_DATABASE_URL": "TEST_DATABASE_URL",
}
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


def read_sources(root: Path, files: Mapping[Path, frozenset[str]], names: frozenset[str]) -> dict[str, Found]:
    """Read every setting of these names that is given somewhere. The environment wins, then earlier files.

    files: each with the names that may be taken from it.
    An empty value counts as not given. `${NAME}` and `${NAME:-default}` in a file are replaced from the
    environment and the file itself. Old names are read with a RenamedSettingWarning.
    Raises SettingsError or ProblemsError: a file can't be read, or a value refers to nothing.
    """
    wanted = _with_old_names(names)
    layers = [{name: Found(text, ENVIRONMENT) for name, text in os.environ.items() if name in wanted}]
    problems: list[RagFactoryError] = []
    for path, allowed in files.items():
        try:
            shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
            layers.append(_expand(_read_file(path, shown), _with_old_names(allowed), shown))
        except SettingsError as problem:
            problems.append(problem)
    if problems:
        raise problems[0] if len(problems) == 1 else ProblemsError(problems)
    found: dict[str, Found] = {}
    for layer in reversed(layers):
        found |= {name: value for name, value in layer.items() if value.text.strip()}
    return _rename(found)


def _with_old_names(names: frozenset[str]) -> frozenset[str]:
    return names | {old for old, new in OLD_NAMES.items() if new in names}


def _read_file(path: Path, shown: str) -> dict[str, str]:
    """Parse one dotenv file; a file that isn't there is empty."""
    # Imported here: a process without such files, as in production, doesn't pay for the parser.
    if not os.path.lexists(path):
        return {}
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8-sig") as stream:
            bindings = list(parse_stream(stream))
    except OSError as error:
        raise SettingsError(
            f"{shown} can't be read: {error.strerror}.", fix=f"Give this user the right to read {path}."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{shown} can't be read: byte {error.start} is not UTF-8.", fix="Save it as UTF-8."
        ) from error
    broken = [str(binding.original.line) for binding in bindings if binding.error]
    if broken:
        # The line itself may hold a password, so only its number is told.
        raise SettingsError(
            f"{shown} can't be read: line {', '.join(broken)} is not NAME=value.",
            fix='Put values with spaces, quotes or # in double quotes: NAME="value".',
        )
    return {binding.key: binding.value or "" for binding in bindings if binding.key}


def _expand(values: Mapping[str, str], wanted: frozenset[str], shown: str) -> dict[str, Found]:
    """Replace the references in a file's values."""
    missing: dict[str, str] = {}

    def expand(name: str, text: str, inside: tuple[str, ...]) -> str:
        def resolve(match: re.Match[str]) -> str:
            other, default = match.groups()
            if os.environ.get(other):
                return os.environ[other]
            if values.get(other) and other not in inside:
                return expand(other, values[other], (*inside, other))
            if default is None:
                missing[other] = name
            return default or ""

        return _REFERENCE.sub(resolve, text)

    expanded = {name: expand(name, text, (name,)) for name, text in values.items() if name in wanted}
    if missing:
        listed = ", ".join(f"{name} uses ${{{other}}}" for other, name in missing.items())
        raise SettingsError(
            f"{shown} refers to a variable that is not set: {listed}.",
            fix=f"Set {' and '.join(missing)} in the environment or in {shown}.",
        )
    return {name: Found(text, shown) for name, text in expanded.items()}


def _rename(found: dict[str, Found]) -> dict[str, Found]:
    """Move values given under old names to their new ones."""
    for old, new in OLD_NAMES.items():
        if old not in found:
            continue
        value = found.pop(old)
        if new in found and found[new].text != value.text:
            raise SettingsError(
                f"{new} ({found[new].origin}) and its old name {old} ({value.origin}) disagree.",
                fix=f"Remove {old}.",
            )
        warnings.warn(
            f"{old} ({value.origin}) is the old name of {new}. Rename it: the old name will go.",
            RenamedSettingWarning,
            stacklevel=2,
        )
        found.setdefault(new, Found(value.text, f"{value.origin}, as {old}"))
    return found
