"""The files of a project, made from those of this repository by what the manifest says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from rag_factory.template.imports import drop_unused, sort_imports
from rag_factory.template.manifest import ENGINE, TEMPLATE, Manifest, read_manifest
from rag_factory.template.parts import leave_out

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

# In a wheel the project's files are data beside this module; in a checkout they are where they are used.
SHIPPED = TEMPLATE / "files"
CHECKOUT = TEMPLATE.parents[1]
# The names that stand for a project's own in files that are only for projects.
PACKAGE, DISTRIBUTION = "my_app", "my-app"
ONLY_PROJECTS = "rag_factory/template/project/"
VERSION = "0.0.0"
# What a project records of itself in [tool.rag_factory].
TEMPLATE_VERSION, LEFT_OUT = "template_version", "left_out"
DISTRIBUTION_OF_ENGINE = "rag-factory"
REVISIONS, LAST = "migrations/versions/", "migrations/HEAD"
_REVISES = re.compile(r"^Revises:.*$", re.MULTILINE)
_IDS = re.compile(r"^(?P<name>revision|down_revision) = (?P<id>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Plan:
    """What a project is to be. name: of the distribution. package: of the Python package."""

    name: str
    package: str
    without: frozenset[str] = frozenset()


def source_root() -> Path:
    """The folder that the manifest's paths start from."""
    return SHIPPED if SHIPPED.is_dir() else CHECKOUT


def source_files(root: Path, manifest: Manifest) -> list[str]:
    """The paths of all files here that are a project's, in their order."""
    found = set()
    for path in manifest.project:
        if not path.endswith("/"):
            found.add(path)
            continue
        for file in (root / path).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in {".pyc", ".pyo"}:
                found.add(file.relative_to(root).as_posix())
    return sorted(path for path in found if manifest.place(path) is not None)


def build_tree(plan: Plan) -> dict[str, bytes]:
    """The content of every file of a project, by its path there."""
    manifest, root = read_manifest(), source_root()
    writer = _Writer(plan, manifest, _engine_modules(manifest))
    tree = {writer.rename(path): writer.rename(text).encode() for path, text in manifest.made.items()}
    for path in source_files(root, manifest):
        if manifest.subjects_of(path) & plan.without:
            continue
        place = manifest.place(path)
        assert place is not None  # noqa: S101 - only those are listed
        tree[writer.rename(place)] = writer.write(path, (root / path).read_bytes())
    return dict(sorted(_relink(tree).items()))


def _engine_modules(manifest: Manifest) -> list[str]:
    """The modules of `rag_factory.database` that are the engine's."""
    paths = (TEMPLATE.parent / "database").glob("*.py")
    names = {path.name for path in paths if manifest.place(f"rag_factory/database/{path.name}") is None}
    return sorted(name.removesuffix(".py") for name in names - {"__init__.py"})


class _Writer:
    """Makes one file of a project after the other."""

    def __init__(self, plan: Plan, manifest: Manifest, engine_modules: Collection[str]) -> None:
        self._plan = plan
        self._manifest = manifest
        self._left_out = plan.without | {ENGINE}
        engine = "|".join(engine_modules)
        self._module = re.compile(rf"\brag_factory([./])(?=services\b|database\b(?!\1(?:{engine})\b))")

    def write(self, path: str, content: bytes) -> bytes:
        """The content of a file in the project. path: here."""
        text = before = content.decode()
        for change in self._manifest.changes:
            if change.file == path and change.without in self._left_out:
                if text.count(change.cut) != 1:
                    raise ValueError(f"manifest.toml: {path} has not once what is to be cut: {change.cut!r}")
                text = text.replace(change.cut, change.put)
        python = path.endswith(".py")
        known = {*self._manifest.subjects, ENGINE}
        try:
            text = leave_out(text, self._left_out, known=known, python=python)
            if python and text != before:
                text = drop_unused(text, before)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        # The engine is somebody else's package there, and the project's own has another name.
        sort = python and "rag_factory" in text
        text = self.rename(text)
        if sort:
            text = sort_imports(text, {self._plan.package, "tests"})
        if path.startswith(ONLY_PROJECTS):
            text = text.replace(VERSION, version(DISTRIBUTION_OF_ENGINE))
            text = text.replace(f"{LEFT_OUT} = []", f"{LEFT_OUT} = {json.dumps(sorted(self._plan.without))}")
        return text.encode()

    def rename(self, text: str) -> str:
        """Give what is the project's its name."""
        text = self._module.sub(rf"{self._plan.package}\1", text)
        return text.replace(PACKAGE, self._plan.package).replace(DISTRIBUTION, self._plan.name)


def _relink(tree: dict[str, bytes]) -> dict[str, bytes]:
    """Let each revision follow the one before it that is left. Ids stay, as files are named for them."""
    before = None
    for path in sorted(path for path in tree if path.startswith(REVISIONS)):
        text = tree[path].decode()
        ids = {found["name"]: found["id"] for found in _IDS.finditer(text)}
        link = "None" if before is None else f'"{before}"'
        if ids["down_revision"] != link:
            text = text.replace(f"down_revision = {ids['down_revision']}\n", f"down_revision = {link}\n")
            text = _REVISES.sub(f"Revises: {before or ''}".rstrip(), text, count=1)
            tree[path] = text.encode()
        before = ids["revision"].strip('"')
    # What git has two branches collide in that both add a revision.
    return tree | {LAST: f"{before}\n".encode()}
