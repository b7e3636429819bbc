"""Which files of a folder differ from a commit, as git sees them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.errors import NotReadyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def changed_files(root: Path, folders: Sequence[Path], since: str) -> set[Path]:
    """The files in these folders that were added or changed since the work left `since`, committed or not.

    Raises UsageError: `since` is no commit, or has no history in common with this one.
    Raises NotReadyError: the folder is not in a git repository, or git is not installed.
    """
    top = Path(_git(root, "rev-parse", "--show-toplevel").strip())
    try:
        # What others changed on the branch meanwhile is not ours: start where the two parted.
        base = _git(root, "merge-base", "--end-of-options", since, "HEAD").strip()
    except _GitError as error:
        raise UsageError(
            f"--since is {since}, from which git finds no way to this checkout: {error}.",
            fix="Name a branch, tag or commit; in CI fetch it first (git fetch origin main, full depth).",
        ) from error
    where = ["--", *map(str, folders)]
    found = _git(root, "diff", "--name-only", "-z", "--diff-filter=d", "--no-renames", base, *where)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--full-name", "-z", *where)
    return {(top / name).resolve() for name in (found + new).split("\0") if name}


class _GitError(Exception):
    """git said no."""


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise NotReadyError("git is not installed.", fix="Install it, or leave out --since.") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1].rstrip(".")
        if "not a git repository" in said:
            raise NotReadyError(f"{root} is not in a git repository.", fix="Leave out --since.")
        raise _GitError(said)
    return done.stdout
