"""The commit that the project's files are at."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_commit(root: Path) -> tuple[str | None, bool | None]:
    """The commit of the folder's repository, and whether files differ from it; both None without one."""
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None, None
    return commit, bool(_git(root, "status", "--porcelain"))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", root, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""  # no git on this machine
    return done.stdout.strip() if done.returncode == 0 else ""
