"""The template database: migrated once, cloned for each worker, kept for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import errors, sql

from rag_factory.errors import LockedError, RefusedError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rag_factory.database.url import DatabaseUrl
    from rag_factory.migrate.project import Project
    from rag_factory.testing.place import Place

BUILD_TIMEOUT_SECONDS = 600.0
POLL_SECONDS = 0.02
# As much as nearly all revisions have, in one read.
FILE_BYTES = 65_536
# How exactly a mark knows when its database was last used.
DAY_SECONDS = 86_400
# A change of what a build makes of a database makes templates of earlier forms useless.
FORM = "15"
# Names have these after the base: nobody else's database is taken for one of ours.
TEMPLATE, WORKER = "ragt", "ragw"
ENGINE = Path(__file__).resolve().parent.parent
# What of the engine a template is made by. Its version tells that too, but not in a checkout of it.
ENGINE_FILES = (
    "migrate/*.py",
    "migrate/operations/*.py",
    "testing/build.py",
    "testing/catalog.py",
    "testing/objects.py",
    "testing/template.py",
)
_FACTS = """
    SELECT current_setting('server_version'), current_setting('fsync'),
           CASE WHEN cardinality(%(extensions)s::text[]) > 0 THEN
           (SELECT string_agg(name || ' ' || default_version, ', ' ORDER BY name)
            FROM pg_available_extensions WHERE name = ANY (%(extensions)s)) END,
           current_user, pg_backend_pid()
"""
# What keeps a database from being dropped, and how it is ended: prepared transactions, subscriptions, slots.
_HOLDS: tuple[tuple[str, type[sql.Literal | sql.Identifier], tuple[LiteralString, ...]], ...] = (
    (
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
        sql.Literal,
        ("ROLLBACK PREPARED {}",),
    ),
    (
        """SELECT subname FROM pg_subscription JOIN pg_database AS d ON d.oid = subdbid
           WHERE datname = current_database()""",
        sql.Identifier,
        (
            "ALTER SUBSCRIPTION {} DISABLE",
            "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
            "DROP SUBSCRIPTION {}",
        ),
    ),
    (
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()",
        sql.Literal,
        ("SELECT pg_drop_replication_slot({})",),
    ),
)
_MARK = """
    SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s AND NOT datallowconn
"""


@dataclass(frozen=True)
class Template:
    """A complete template.

    fingerprint: of its schema and rows, as a clone must still have it. settings: what its migrations set for
    the database, which cloning doesn't copy: each the role that it is for, or none, its name and its value.
    strategy: how this server clones fastest.
    """

    name: str
    strategy: str
    fingerprint: str
    deferrable: bool
    settings: list[list[str]] = field(default_factory=list)
    built: bool = False

    def as_data(self) -> dict[str, Any]:
        """The same as plain data, for another process."""
        return asdict(self)


@dataclass(frozen=True)
class ServerFacts:
    """What the server says of itself. extensions: the versions it has of those that the project uses.

    role: whose all becomes that is made.
    """

    version: str
    strategy: str
    extensions: str
    role: str


def read_facts(
    server: psycopg.Connection[Any], url: DatabaseUrl, project: Project, connect_timeout_seconds: int
) -> ServerFacts:
    """Ask the server what the template and the cloning depend on. url: where the session was opened.

    Raises NotReadyError: a pooler stands before it, where a lease would not last.
    """
    row = server.execute(_FACTS.encode(), {"extensions": list(project.extensions)}).fetchone()
    full_version, fsync, extensions, role, pid = row or ("", "on", None, "", 0)
    if pid != server.info.backend_pid:
        from rag_factory.migrate.pooler import refuse_pooler

        refuse_pooler(server, pid, url, connect_timeout_seconds)
    # Copying files takes two checkpoints: cheap where nothing is flushed to disk, dear elsewhere.
    strategy = "FILE_COPY" if fsync == "off" else "WAL_LOG"
    return ServerFacts(full_version.split()[0], strategy, extensions or "", role)


def template_key(project: Project, facts: ServerFacts) -> str:
    """Twelve characters that change with whatever a migration's result depends on: see `read_source`."""
    return key_of(read_source(project), facts)


def key_of(source: bytes, facts: ServerFacts) -> str:
    """The key of what `read_source` gives, on a server."""
    said = f"{facts.version}\n{facts.extensions}\n{facts.role}\n".encode()
    return hashlib.sha256(source + said).hexdigest()[:12]


def read_source(project: Project) -> bytes:
    """A digest of all in the checkout that a migration's result depends on. Asks no server.

    All files of the script folders count, since a revision may read any of them, and those that the project
    names as `template_files`; but not what Python and editors leave there.
    Raises SettingsError: one of `template_files` isn't there.
    """
    configuration = [project.root / "alembic.ini"] if project.ini else []
    if ENGINE.is_relative_to(project.root.resolve()) and "site-packages" not in ENGINE.parts:
        engine = "in this checkout"
        configuration += [path for pattern in ENGINE_FILES for path in ENGINE.glob(pattern)]
    else:
        engine = _engine_version()
    files = _files_in([*project.script_folders, *_named_files(project), *configuration])
    parts: list[bytes] = []
    for path, name in sorted(files.items()):
        content = _read(path)
        parts += f"{name} {len(content)}\n".encode(), content
    settings = project.pyproject.get("rag_factory", {}), project.pyproject.get("alembic", {})
    for fact in (FORM, engine, json.dumps(settings, sort_keys=True, default=str)):
        parts.append(f"{fact}\n".encode())
    return hashlib.sha256(b"".join(parts)).digest()


def template_name(place: Place, key: str) -> str:
    """The name of the template with this key."""
    return f"{place.base}_{TEMPLATE}_{key}"


def worker_name(place: Place, checkout: str, slot: int) -> str:
    """The name of the worker database in this slot. Private clones have a suffix more."""
    return f"{place.base}_{WORKER}_{checkout}_{slot}"


def ensure_template(
    server: psycopg.Connection[Any], place: Place, project: Project, name: str, strategy: str
) -> Template:
    """Find the template, or build it. However many ask at once, one builds and the others wait.

    server: a session on the maintenance database, where all of them meet.
    Raises RagFactoryError: a migration failed; no template is left behind.
    """
    found = use_template(server, name, strategy)
    if found is not None:
        return found
    with _building(server, name):
        found = find_template(server, name, strategy)
        if found is not None:
            return found
        # Imported here: only building needs it, and it would cost a warm run more than all the rest.
        from rag_factory.testing.build import build

        return build(server, place, project, name, strategy)


def use_template(server: psycopg.Connection[Any], name: str, strategy: str) -> Template | None:
    """Find the template. As long as the session lasts, nobody collects it, nor the one that is built then."""
    server.execute("SELECT pg_advisory_lock_shared(%s)", (use_key(name),))
    return find_template(server, name, strategy)


def find_template(server: psycopg.Connection[Any], name: str, strategy: str) -> Template | None:
    """The template of that name, if it is there and complete; it is marked as used."""
    row = server.execute(_MARK.encode(), (name,)).fetchone()
    mark = read_mark(row[0] if row else None)
    if mark.get("kind") != "template":
        return None
    touch(server, name, mark)
    return Template(name, strategy, mark["fingerprint"], mark["deferrable"], mark["settings"])


def read_mark(comment: str | None) -> dict[str, Any]:
    """What we wrote into a database's comment; empty when it isn't ours."""
    try:
        mark = json.loads(comment or "{}").get("rag_factory", {})
    except (ValueError, AttributeError):
        return {}
    return mark if isinstance(mark, dict) else {}


def comment(name: str, **mark: Any) -> sql.Composed:
    """The statement that writes it."""
    text = json.dumps({"rag_factory": mark | {"used": int(time.time())}})
    return sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(text))


def touch(server: psycopg.Connection[Any], name: str, mark: dict[str, Any]) -> None:
    """Note that a database was used, at most once a day."""
    if is_stale(mark):
        server.execute(comment(name, **mark))


def is_stale(mark: dict[str, Any]) -> bool:
    """Whether a mark is to be written again, so that its database doesn't count as unused."""
    return bool(time.time() - mark.get("used", 0) > DAY_SECONDS)


def drop(server: psycopg.Connection[Any], name: str) -> None:
    """Drop a database, ending the sessions on it and what else holds it.

    Raises RefusedError: something does that this role may not end.
    """
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    try:
        try:
            server.execute(statement)
        except errors.ObjectInUse:
            _free(server, name)
            server.execute(statement)
    except (errors.ObjectInUse, errors.InsufficientPrivilege) as error:
        raise RefusedError(
            f"The test database {name} can't be dropped: {error.diag.message_primary}.",
            fix="End what uses it, then run the tests again.",
        ) from error


def _free(server: psycopg.Connection[Any], name: str) -> None:
    """End what a test may have left that holds a database, as far as this role may."""
    info = server.info
    with (
        suppress(psycopg.Error),
        psycopg.connect(info.dsn, password=info.password, dbname=name, autocommit=True) as session,
    ):
        for query, quote, ends in _HOLDS:
            for (held,) in session.execute(query.encode()).fetchall():
                for end in ends:
                    session.execute(sql.SQL(end).format(quote(held)))


def lock_key(name: str) -> int:
    """The advisory lock of a database's name, in the maintenance database: held to build or to lease it."""
    return int.from_bytes(hashlib.sha256(f"rag-factory {name}".encode()).digest()[:8], signed=True)


def use_key(name: str) -> int:
    """The advisory lock of a template that runs share for as long as they may clone it."""
    return lock_key(f"use of {name}")


@contextmanager
def _building(server: psycopg.Connection[Any], name: str) -> Iterator[None]:
    """Be the only builder of this template on the server."""
    deadline = time.monotonic() + BUILD_TIMEOUT_SECONDS
    while not try_lock(server, lock_key(name)):
        if time.monotonic() > deadline:
            raise LockedError(
                f"Another run has been building {name} for {BUILD_TIMEOUT_SECONDS:.0f} s.",
                fix="End it, then run the tests again.",
            )
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        unlock(server, lock_key(name))


def try_lock(server: psycopg.Connection[Any], key: int) -> bool:
    """Take an advisory lock if it is free."""
    row = server.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
    return bool(row and row[0])


def unlock(server: psycopg.Connection[Any], *keys: int) -> None:
    """Give advisory locks back."""
    server.execute("SELECT pg_advisory_unlock(key) FROM unnest(%s::bigint[]) AS key", (list(keys),))


def _named_files(project: Project) -> list[Path]:
    """The files and folders outside the script folders that the project says its revisions use."""
    given = project.pyproject.get("rag_factory", {}).get("template_files", [])
    setting = "[tool.rag_factory] template_files in pyproject.toml"
    if not isinstance(given, list) or not all(isinstance(one, str) and one for one in given):
        raise SettingsError(
            f"{setting} is {given!r}, not a list of paths.",
            fix='Write it like template_files = ["app/models"]',
        )
    found: list[Path] = []
    for one in given:
        path = project.root / one
        # A pattern can't be absolute, and a path need not be one.
        paths = [path] if path.exists() or Path(one).is_absolute() else list(project.root.glob(one))
        if not paths or not all(path.exists() for path in paths):
            raise SettingsError(
                f"{setting} names {one}, and there is nothing of that name in {project.root}.",
                fix="Correct or remove it.",
            )
        found += paths
    return found


def _files_in(paths: Sequence[Path]) -> dict[str, str]:
    """All files in these folders, at any depth, and those that are files themselves, with their names."""
    found = {str(path): path.name for path in paths if path.is_file()}
    for path in paths:
        for folder, folders, files in os.walk(path):
            folders[:] = [name for name in folders if name != "__pycache__"]
            inside = path.name + folder.removeprefix(str(path))
            for name in files:
                file = f"{folder}/{name}"
                if not name.startswith(".") and not name.endswith("~"):
                    found[file] = f"{inside}/{name}"
    return found


def _read(path: str) -> bytes:
    """Read a file as the system does it: there are hundreds of them, and this is done at every start."""
    try:
        # Without waiting for whoever writes to it, should it be a pipe.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""  # a link to nowhere, as editors leave them
    try:
        if (content := os.read(file, FILE_BYTES)) and len(content) == FILE_BYTES:
            return content + b"".join(iter(lambda: os.read(file, FILE_BYTES), b""))
        return content
    finally:
        os.close(file)


def _engine_version() -> str:
    try:
        return version("rag-factory")
    except PackageNotFoundError:
        return "source"
