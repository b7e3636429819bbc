"""Write a project: into a new folder, or over the checkout it is made from. Both come to the same tree."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.errors import RefusedError, UsageError
from rag_factory.template.manifest import Manifest, read_manifest
from rag_factory.template.names import package_of
from rag_factory.template.tree import Plan, build_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIGNS = {"add": "+", "change": "~", "remove": "-"}
NEXT_STEPS = ("uv run invoke db.migrate", "uv run nox -s tests")


@dataclass(frozen=True)
class Change:
    """What is done to a file. kind: add, change or remove."""

    kind: str
    path: str


def make_plan(name: str, without: str | None = None) -> Plan:
    """What a project of this name is to be. without: subjects, with commas between them.

    Raises UsageError: the name is no good, or there is no such subject.
    """
    package = package_of(name)
    known = read_manifest().subjects
    chosen = frozenset(filter(None, (each.strip() for each in (without or "").split(","))))
    if unknown := sorted(chosen - known.keys()):
        raise UsageError(
            f"There is no subject {', '.join(unknown)} to do without.", fix=f"There are: {', '.join(known)}"
        )
    return Plan(name.replace("_", "-"), package, chosen)


def write_new(plan: Plan, folder: Path, *, dry_run: bool, on_change: Callable[[Change], None]) -> None:
    """Write a project into a folder that is empty or isn't there.

    Raises RefusedError: there is something in it; nothing was written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RefusedError(f"{folder} is there, and not empty.", fix="Take another name or --folder.")
    _write(build_tree(plan), folder, dry_run=dry_run, on_change=on_change)


def rewrite_checkout(plan: Plan, root: Path, *, dry_run: bool, on_change: Callable[[Change], None]) -> None:
    """Make a checkout of this template the project that `write_new` makes; the engine's own files go.

    Raises RefusedError: git doesn't have it all as it is, so it could not be taken back; nothing was changed.
    """
    files = _tracked(root)
    manifest = read_manifest()
    # All of it before the first change: the sources, and this code, are among the files that go.
    tree = build_tree(plan)
    gone = [path for path in files if path not in tree and _is_template(manifest, path)]
    _write(tree, root, dry_run=dry_run, on_change=on_change)
    for path in gone:
        on_change(Change("remove", path))
        if not dry_run:
            (root / path).unlink()
            _remove_empty(root, path)


def _write(
    tree: dict[str, bytes], folder: Path, *, dry_run: bool, on_change: Callable[[Change], None]
) -> None:
    for path, content in tree.items():
        file = folder / path
        if file.is_file() and file.read_bytes() == content:
            continue
        on_change(Change("change" if file.is_file() else "add", path))
        if not dry_run:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _is_template(manifest: Manifest, path: str) -> bool:
    """Whether a file is the template's, and not one that was added to the checkout beside it."""
    try:
        manifest.place(path)
    except LookupError:
        return False
    return True


def _tracked(root: Path) -> list[str]:
    """The files of a checkout. Raises RefusedError: there are changes that aren't committed."""
    status = _git(root, "status", "--porcelain", "--untracked-files=all")
    if status is None:
        raise RefusedError(
            f"{root} is no git repository, so nothing could be taken back.",
            fix="First: git init && git add . && git commit -m 'The template'",
        )
    if status:
        changed = [line[3:] for line in status.splitlines()]
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")  # noqa: PLR2004 - three are shown
        raise RefusedError(
            f"The checkout has changes that are not committed: {shown}.",
            fix="Commit them or take them back: git stash --include-untracked",
        )
    return [path for path in (_git(root, "ls-files", "-z") or "").split("\0") if path]


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None: it fails, or there is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _remove_empty(root: Path, path: str) -> None:
    """Remove the folders that a file leaves empty, but for what Python compiled there."""
    import shutil

    folder = (root / path).parent
    while folder != root and {each.name for each in folder.iterdir()} <= {"__pycache__"}:
        shutil.rmtree(folder)
        folder = folder.parent
