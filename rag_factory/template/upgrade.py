"""What a newer engine asks of a project's own files."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from rag_factory.errors import NotReadyError, SettingsError
from rag_factory.template.creation import make_plan
from rag_factory.template.manifest import read_manifest
from rag_factory.template.tree import (
    DISTRIBUTION_OF_ENGINE,
    LEFT_OUT,
    TEMPLATE_VERSION,
    build_tree,
    source_root,
)

if TYPE_CHECKING:
    from pathlib import Path

_RELEASE = re.compile(r"^## \[(?P<version>\d+(?:\.\d+)*)\].*$", re.MULTILINE)
_UPDATING = re.compile(r"^### Updating\n+(?P<text>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Advice:
    """What `upgrade --check` found.

    recorded: the release that the project's files are as of. installed: the engine's.
    updating: the paragraphs of the releases between them, oldest first, by release.
    differing: for each own file that isn't as the template's, the difference as a unified diff, from the
    project's to the template's; files that the project doesn't have, as well.
    """

    recorded: str
    installed: str
    updating: dict[str, str]
    differing: dict[str, str]


def check_upgrade(root: Path) -> Advice:
    """Hold a project against the engine that is installed.

    Raises NotReadyError: it doesn't say which release its files are as of.
    """
    path = root / "pyproject.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotReadyError(
            f"{root} has no pyproject.toml.", fix="Run it in the project's folder."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} can't be read: {error}.", fix="Correct the file.") from error
    settings = data.get("tool", {}).get("rag_factory", {})
    installed = version(DISTRIBUTION_OF_ENGINE)
    recorded = settings.get(TEMPLATE_VERSION)
    if not isinstance(recorded, str) or not re.fullmatch(r"\d+(\.\d+)*", recorded):
        raise NotReadyError(
            f"{path} doesn't say which release its files are as of: {TEMPLATE_VERSION} is {recorded!r}.",
            fix=f'Write it in [tool.rag_factory]: {TEMPLATE_VERSION} = "{installed}"',
        )
    changelog = (source_root() / "CHANGELOG.md").read_text(encoding="utf-8")
    differing = {}
    # A project that adopted the engine has no files of the template.
    if LEFT_OUT in settings:
        name = data.get("project", {}).get("name", root.resolve().name)
        differing = _compare(root, name, ",".join(settings[LEFT_OUT]))
    return Advice(recorded, installed, updating(changelog, recorded, installed), differing)


def updating(changelog: str, after: str, until: str) -> dict[str, str]:
    """The paragraphs "Updating" of the releases after one and until another, oldest first."""
    found = {}
    releases = list(_RELEASE.finditer(changelog))
    for release, following in zip(releases, [*releases[1:], None], strict=True):
        if not _numbers(after) < _numbers(release["version"]) <= _numbers(until):
            continue
        section = changelog[release.end() : following.start() if following else len(changelog)]
        if text := _UPDATING.search(section):
            found[release["version"]] = text["text"].strip()
    return dict(sorted(found.items(), key=lambda item: _numbers(item[0])))


def _compare(root: Path, name: str, without: str) -> dict[str, str]:
    """The own files that aren't as the template's."""
    own = read_manifest().own
    differing = {}
    for path, content in build_tree(make_plan(name, without)).items():
        if not any(path == each or (each.endswith("/") and path.startswith(each)) for each in own):
            continue
        file = root / path
        here = file.read_text(encoding="utf-8") if file.is_file() else ""
        lines = difflib.unified_diff(
            here.splitlines(keepends=True),
            content.decode().splitlines(keepends=True),
            f"{path} (here)",
            f"{path} (template)",
        )
        if difference := "".join(lines):
            differing[path] = difference
    return differing


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)))
