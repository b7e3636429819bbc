"""What the wheel holds: the engine as a package, the project's files as data beside it; by the manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = "rag_factory/template/files"


class ManifestHook(BuildHookInterface):  # type: ignore[type-arg] # its config is of no use here
    """Packs each file to where the manifest has it. An editable install uses them where they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files of the wheel."""
        if version == "editable":
            return
        root = Path(self.root)
        sys.path.insert(0, str(root))
        from rag_factory.template.manifest import read_manifest
        from rag_factory.template.tree import source_files

        manifest = read_manifest()
        engine = [
            path.relative_to(root).as_posix()
            for path in sorted((root / "rag_factory").rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        ]
        packed = {path: path for path in engine if manifest.place(path) is None}
        packed |= {path: f"{FILES}/{path}" for path in source_files(root, manifest)}
        packed["CHANGELOG.md"] = f"{FILES}/CHANGELOG.md"
        build_data["force_include"] |= {str(root / path): place for path, place in packed.items()}
