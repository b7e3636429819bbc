"""schema.sql: the whole schema in one file, the same bytes for the same schema."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from rag_factory.database.driver import connect
from rag_factory.errors import NotReadyError, RagFactoryError, UsageError
from rag_factory.migrate.differences import compare, describe
from rag_factory.migrate.drift import read_target
from rag_factory.migrate.scratch import dump_schema, loaded_scratch
from rag_factory.migrate.state import read_revisions

if TYPE_CHECKING:
    from pathlib import Path

    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

NAME = "schema.sql"
_DUMPED = re.compile(r"^-- Dumped (?:from database|by pg_dump) version (\d+).*\n", re.MULTILINE)
# A token that is new each time; a setting that older servers don't know.
_LINES = re.compile(r"^(?:\\(?:un)?restrict \S+|SET transaction_timeout = 0;)\n", re.MULTILINE)
# It belongs to the version of the extension, not to the schema.
_EXTENSION_COMMENT = re.compile(
    r"--\n-- Name: EXTENSION [^\n]*; Type: COMMENT;[^\n]*\n--\n\nCOMMENT ON EXTENSION [^\n]*;\n\n+"
)
_HEAD = re.compile(r"-- The schema at .*, as (PostgreSQL \d+ and pg_dump \d+) write it\.")


def default_path(project: Project) -> Path:
    """Where the file is kept: beside the revisions."""
    return project.script_folders[0] / NAME


def schema_text(target: Target, project: Project) -> str:
    """Write the target's schema as SQL, without owners, grants and the engine's own tables.

    Of what PostgreSQL's programs add, what changes from run to run or with a minor version is left out; the
    major versions that spelled it are in the first line.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as session:
        at = ", ".join(read_revisions(target, project, session)) or "base"
        major = session.info.server_version // 10000
    dump = dump_schema(target, major).decode("utf-8")
    server, program = _DUMPED.findall(dump)
    for surplus in (_DUMPED, _LINES, _EXTENSION_COMMENT):
        dump = surplus.sub("", dump)
    head = f"-- The schema at {at}, as PostgreSQL {server} and pg_dump {program} write it.\n"
    return f"{head}-- Made by `invoke db.schema`; a change here changes nothing.\n\n{dump.strip()}\n"


def write_schema_file(target: Target, project: Project, path: Path) -> None:
    """Write the target's schema to the file."""
    # As bytes, also in reading: a text in an expression may hold a line end of another kind.
    path.write_bytes(schema_text(target, project).encode())


def find_stale(target: Target, project: Project, path: Path) -> str:
    """Hold the file against the target. Returns what differs, as text; empty when nothing does.

    Where another major version wrote the file, the spelling may differ: then the file is run in a scratch
    database on the target's server, and the two schemas are compared.
    Raises UsageError: there is no such file. Raises NotReadyError: this server can't run it.
    """
    try:
        kept = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"There is no {path}.", fix="Write it: invoke db.schema") from error
    text = schema_text(target, project)
    if kept == text:
        return ""
    written, now = _HEAD.match(kept), _HEAD.match(text)
    if written and now and written[1] != now[1]:
        return _compare_by_running(target, project, (kept, text), written[1])
    lines = difflib.unified_diff(kept.split("\n"), text.split("\n"), path.name, "the schema", lineterm="")
    return "\n".join(lines).replace("\r", r"\r")


def _compare_by_running(target: Target, project: Project, texts: tuple[str, str], written_by: str) -> str:
    """Run both: an expression that went through a dump is spelled another way than the one it came from."""
    schemas = []
    try:
        for text in texts:
            with loaded_scratch(target, project, text.encode()) as scratch:
                schemas.append(read_target(scratch, project, rights=False)[0])
    except RagFactoryError as error:
        raise NotReadyError(
            f"The file was written by {written_by}, and this server can't run it to compare: {error.what}",
            fix="Check it on a server of that version.",
        ) from error
    return describe(compare(*schemas))
