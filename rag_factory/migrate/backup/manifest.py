"""What a backup says of itself: manifest.json, with the sums of its files and one of its own."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rag_factory.errors import RagFactoryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 1
FILE = "manifest.json"
# What pg_dump writes: a file in its custom format, or a folder in its directory format.
DUMP = "database.dump"
# Stands among the tables whose rows are counted; no table's name looks like it.
LARGE_OBJECTS = "large objects"


@dataclass(frozen=True)
class FileSum:
    """A file of a backup, as it was written. sha256: in hexadecimal."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that is known of a backup without reading its dump.

    system: the server's system identifier, which tells two databases of one name apart.
    revisions: what the version table held. git_dirty: whether files differed from git_commit; both are None
    outside of a repository. extensions: their versions. rows: of each table, its name quoted as in SQL, those
    in the dump; LARGE_OBJECTS among them where there are some. roles: who owns something in it or is granted
    something. settings: the database's own, each as "name=value". files: by path within the backup.
    started: in UTC, ISO 8601. seconds: how long it took.
    """

    database: str
    system: str
    revisions: tuple[str, ...]
    git_commit: str | None
    git_dirty: bool | None
    server_version: str
    extensions: Mapping[str, str]
    pg_dump_version: str
    rows: Mapping[str, int]
    roles: tuple[str, ...]
    settings: tuple[str, ...]
    files: Mapping[str, FileSum]
    started: str
    seconds: float

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files.values())

    @property
    def table_count(self) -> int:
        """How many tables there are."""
        return len(self.rows.keys() - {LARGE_OBJECTS})

    @property
    def row_count(self) -> int:
        """Of all tables together."""
        return sum(self.rows.values())

    @property
    def age_seconds(self) -> float:
        """Since the backup was begun."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.started)).total_seconds()

    def data(self) -> dict[str, Any]:
        """The manifest as it is written."""
        content = {"format": FORMAT, **asdict(self)}
        return {**content, "sha256": _sum_of(content)}

    def write(self, folder: Path) -> None:
        """Write it into a backup's folder, and have it on the disk when this returns."""
        descriptor = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(self.data(), file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Backup:
    """A complete backup: its folder, and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """What to call it on the command line."""
        return self.path.name

    @property
    def dump(self) -> Path:
        """What pg_restore reads."""
        return self.path / DUMP

    def check_files(self) -> None:
        """Check that each file is there, in its size. Raises RagFactoryError: the backup is damaged."""
        for name, expected in self.manifest.files.items():
            try:
                size = (self.path / name).stat().st_size
            except OSError as error:
                raise self._damaged(f"{name} can't be read ({error.strerror})") from error
            if size != expected.size_bytes:
                raise self._damaged(f"{name} has {size} bytes instead of {expected.size_bytes}")

    def verify(self) -> None:
        """Read each file and check its sum. Raises RagFactoryError: the backup is damaged."""
        self.check_files()
        for name, expected in self.manifest.files.items():
            try:
                found = sum_file(self.path / name).sha256
            except OSError as error:
                raise self._damaged(f"{name} can't be read ({error.strerror})") from error
            if found != expected.sha256:
                raise self._damaged(f"the SHA-256 of {name} is {found}, not {expected.sha256}")

    def _damaged(self, what: str) -> RagFactoryError:
        return damaged(self.name, what)


def open_backup(path: Path) -> Backup:
    """Read the manifest of a backup. The dump is not looked at.

    Raises UsageError: there is no backup. Raises RagFactoryError: its manifest is missing or was changed.
    """
    if not path.is_dir():
        raise UsageError(
            f"There is no backup {path.name} in {path.parent}.", fix="See them: invoke db.backups"
        )
    try:
        data = json.loads((path / FILE).read_bytes())
        stated = data.pop("sha256")
        if data["format"] != FORMAT:
            raise RagFactoryError(
                f"The backup {path.name} has format {data['format']!r}; this version reads format {FORMAT}.",
                fix="Update rag-factory.",
            )
        if stated != _sum_of(data):
            raise damaged(path.name, f"{FILE} was changed after it was written")
        return Backup(path, _manifest(data))
    except FileNotFoundError as error:
        raise damaged(path.name, f"it has no {FILE}") from error
    except OSError as error:
        raise damaged(path.name, f"{FILE} can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path.name, f"{FILE} is none of ours") from error


def sum_file(path: Path) -> FileSum:
    """Read a file for its size and sum."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileSum(file.tell(), digest)


def damaged(name: str, what: str) -> RagFactoryError:
    """The error for a backup that can't be relied on."""
    return RagFactoryError(
        f"The backup {name} is damaged: {what}.", fix="Take another one: invoke db.backups --verify"
    )


def _manifest(data: dict[str, Any]) -> Manifest:
    del data["format"]
    for name in ("revisions", "roles", "settings"):
        data[name] = tuple(data[name])
    data["files"] = {name: FileSum(**file) for name, file in data["files"].items()}
    return Manifest(**data)


def _sum_of(content: dict[str, Any]) -> str:
    """The sum of all that a manifest says, however it is laid out."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
