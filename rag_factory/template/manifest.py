"""Read the manifest: which file is the project's, and which subject it belongs to."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TEMPLATE = Path(__file__).parent
ENGINE = "engine"


@dataclass(frozen=True)
class Change:
    """A text that another takes the place of, where a subject is left out; it stands in the file once."""

    file: str
    without: str
    cut: str
    put: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.toml says.

    project: from a path here to its path in a project; a folder ends in "/".
    engine: paths that stay here. Of several that a file is under, the longest counts.
    subjects: of each, the files that belong to it. made: files that are only in a project, with their text.
    own: files that a project keeps as they are; `upgrade --check` holds them against the template's.
    """

    project: dict[str, str]
    engine: tuple[str, ...]
    made: dict[str, str]
    own: tuple[str, ...]
    subjects: dict[str, tuple[str, ...]]
    changes: tuple[Change, ...]

    def place(self, path: str) -> str | None:
        """Where a file of this repository is in a project; None: nowhere, it is the engine's.

        Raises LookupError: the manifest doesn't know it.
        """
        known = [*self.project, *self.engine]
        matching = [each for each in known if path == each or (each.endswith("/") and path.startswith(each))]
        if not matching:
            raise LookupError(f"{path} is neither in [project] nor in [engine] of manifest.toml")
        longest = max(matching, key=len)
        if longest not in self.project:
            return None
        return self.project[longest] + (path[len(longest) :] if longest.endswith("/") else "")

    def subjects_of(self, path: str) -> set[str]:
        """The subjects without which a file isn't there."""
        return {subject for subject, files in self.subjects.items() if path in files}


@cache
def read_manifest() -> Manifest:
    """The manifest of the engine that runs."""
    data = tomllib.loads((TEMPLATE / "manifest.toml").read_text(encoding="utf-8"))
    return Manifest(
        project=data["project"],
        engine=tuple(data["engine"]["paths"]),
        made=data["made"],
        own=tuple(data["own"]["files"]),
        subjects={name: tuple(files) for name, files in data["subjects"].items()},
        changes=tuple(Change(**each) for each in data["changes"]),
    )
