"""Backups: what is in one, who may write meanwhile, what a failure leaves, how many are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.errors import BackupError, NotReadyError, RagFactoryError, UsageError
from rag_factory.migrate.backup import child
from rag_factory.migrate.backup.dump import back_up
from rag_factory.migrate.backup.folder import find_backup, list_backups, prune, reading
from rag_factory.migrate.backup.manifest import DUMP, FILE, Backup, open_backup
from rag_factory.migrate.backup.restore import prepare
from rag_factory.migrate.project import Project
from rag_factory.migrate.schema import read_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from rag_factory.migrate.target import Target

    Query = Callable[..., list[tuple[Any, ...]]]

# One of each that a dump has to carry.
CONTENT = """
CREATE EXTENSION vector;
CREATE SCHEMA "Odd one";
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE items (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL, mood mood DEFAULT 'good',
    length int GENERATED ALWAYS AS (length(text)) STORED, embedding vector(3));
CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops);
INSERT INTO items (text, embedding)
    SELECT 'item ' || n, ARRAY[n, 1, 2]::vector FROM generate_series(1, 500) AS n;
CREATE TABLE "Odd one"."Table" (item int REFERENCES items, day date) PARTITION BY RANGE (day);
CREATE TABLE "Odd one"."old ""one"" s" PARTITION OF "Odd one"."Table" DEFAULT;
INSERT INTO "Odd one"."Table" SELECT id, '2026-01-01' FROM items LIMIT 7;
CREATE TABLE parent (a int);
CREATE TABLE heir () INHERITS (parent);
INSERT INTO parent VALUES (1);
INSERT INTO heir VALUES (2), (3);
CREATE VIEW good AS SELECT * FROM items WHERE mood = 'good';
CREATE MATERIALIZED VIEW many AS SELECT count(*) FROM items;
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER nothing BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION nothing();
ALTER TABLE items ENABLE ROW LEVEL SECURITY;
CREATE POLICY only_good ON items USING (mood = 'good');
CREATE SCHEMA rag_factory;
CREATE TABLE rag_factory.notes (id int);
SELECT lo_from_bytea(0, 'a large object');
"""


def test_all_comes_back(
    target: Target, project: Path, make_target: Callable[[DatabaseUrl], Target], query: Query
) -> None:
    query(CONTENT)
    name = target.url.database
    query(f'ALTER DATABASE "{name}" SET search_path TO "Odd one", public')
    query(f"ALTER DATABASE \"{name}\" SET rag_factory.mark = 'on'")
    before = _look(target.url)
    for jobs in (1, 2):
        made = back_up(target, Project(project), jobs=jobs)
        assert made.dump.is_dir() == (jobs > 1)
        assert made.manifest.rows == {
            '"Odd one"."old ""one"" s"': 7,
            "large objects": 1,
            "public.heir": 2,
            "public.items": 500,
            "public.parent": 1,
            "rag_factory.notes": 0,
        }
        copy = make_target(target.url.with_database(f"{name}_copy{jobs}"))
        done = prepare(made, copy, Project(project), no_owner=False).run(jobs=2, wait_seconds=0)
        assert (done.kept_as, done.refused) == (None, ())
        assert _look(copy.url) == before
        with psycopg.connect(copy.url.plain) as connection:
            assert connection.execute("SELECT nextval('items_id_seq')").fetchone() == (501,)
            assert connection.execute(
                "SELECT convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata"
            ).fetchone() == ("a large object",)
            # Its own settings came along; but a copy of a database that is marked is not marked.
            assert connection.execute(
                "SELECT current_setting('search_path'), current_setting('rag_factory.mark', true)"
            ).fetchone() == ('"Odd one", public', None)
            known = "SELECT reltuples FROM pg_class WHERE relname = 'items'"
            assert connection.execute(known).fetchone() == (500,)


def test_a_backup_is_for_its_user_and_says_what_it_is(target: Target, project: Path, query: Query) -> None:
    query("CREATE TABLE alembic_version (version_num text); CREATE TABLE things (id int)")
    query("INSERT INTO alembic_version VALUES ('a/b'), ('c')")
    (project / "backups").mkdir(mode=0o755)
    made = back_up(target, Project(project))
    assert re.fullmatch(rf"{target.url.database}_\d{{8}}T\d{{6}}Z_a-b\+c", made.name)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (made.path, *made.path.rglob("*"))}
    assert modes == {made.name: 0o700, DUMP: 0o600, FILE: 0o600}
    told = json.loads((made.path / FILE).read_text())
    assert told["revisions"] == ["a/b", "c"]
    assert (told["database"], told["rows"]["public.things"]) == (target.url.database, 0)
    assert told["server_version"] == told["pg_dump_version"] == "18.6"
    assert told["extensions"] == {}
    assert (told["git_commit"], told["git_dirty"]) == (None, None)
    assert open_backup(made.path) == made
    made.verify()
    assert target.url.password not in (made.path / FILE).read_text()


def test_the_manifest_names_commit_and_whether_files_differ(target: Target, project: Path) -> None:
    for arguments in ("init -q", "add tasks.py", "-c user.name=x -c user.email=x@y commit -q -m one"):
        subprocess.run(["git", *arguments.split()], cwd=project, check=True)
    made = back_up(target, Project(project))
    assert re.fullmatch("[0-9a-f]{40}", made.manifest.git_commit or "")
    assert made.manifest.git_dirty is True


def test_rows_are_of_one_moment_while_others_write(
    target: Target, project: Path, make_target: Callable[[DatabaseUrl], Target], query: Query
) -> None:
    query("CREATE TABLE first (id int); CREATE TABLE second (id int); CREATE TABLE third (id int)")
    stop, written = Event(), Event()

    def write() -> int:
        rounds = 0
        with psycopg.connect(target.url.plain) as connection:
            while not stop.is_set():
                for table in ("third", "second", "first"):
                    connection.execute(f"INSERT INTO {table} SELECT generate_series(1, 100)".encode())
                connection.commit()
                rounds += 1
                written.set()
        return rounds

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            assert written.wait(30)
            made = back_up(target, Project(project))
        finally:
            stop.set()
        rounds = writing.result()
    counts = set(made.manifest.rows.values())
    assert len(counts) == 1, counts
    assert 0 < counts.pop() < rounds * 100, "nobody wrote after the backup had begun"
    # Loading it proves the count of each table.
    prepare(
        made,
        make_target(target.url.with_database(f"{target.url.database}_copy")),
        Project(project),
        no_owner=False,
    ).run(jobs=1, wait_seconds=0)


def test_progress_grows_to_the_end(
    target: Target,
    project: Path,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
    make_target: Callable[[DatabaseUrl], Target],
) -> None:
    monkeypatch.setattr(child, "TICK_SECONDS", 0.001)
    query("CREATE TABLE many AS SELECT n, md5(n::text) FROM generate_series(1, 200000) AS n")
    told: list[float] = []
    made = back_up(target, Project(project), on_progress=told.append)
    assert told == sorted(told)
    assert [part for part in told if 0 < part < 1], told
    told.clear()
    copy = make_target(target.url.with_database(f"{target.url.database}_copy"))
    prepare(made, copy, Project(project), no_owner=False).run(jobs=1, wait_seconds=0, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(set(told)) > 2


# --- failures ---


def test_a_locked_table_is_not_waited_for_longer_than_told(
    target: Target, project: Path, query: Query
) -> None:
    query("CREATE TABLE busy (id int)")
    with psycopg.connect(target.url.plain) as other:
        other.execute("LOCK TABLE busy")
        with pytest.raises(BackupError, match=r"is left of it: A lock in .* not obtained") as caught:
            back_up(target, Project(project), wait_seconds=0)
    assert caught.value.exit_code == 9
    assert not (project / "backups").exists()


def test_a_password_that_changes_in_between_fails_the_backup(
    target: Target,
    project: Path,
    query: Query,
    make_target: Callable[[DatabaseUrl], Target],
    server: psycopg.Connection[Any],
    owner: DatabaseUrl,
) -> None:
    query("CREATE TABLE busy (id int)")
    theirs = make_target(replace(owner, database=target.url.database))
    with ThreadPoolExecutor(1) as pool, psycopg.connect(target.url.plain) as other:
        other.execute("GRANT SELECT ON busy TO owner_of_tests")
        other.commit()
        other.execute("LOCK TABLE busy")
        running = pool.submit(back_up, theirs, Project(project))
        while not server.execute(
            "SELECT FROM pg_stat_activity WHERE usename = 'owner_of_tests' AND wait_event_type = 'Lock'"
        ).fetchall():
            assert not running.done(), running.result()
        server.execute("ALTER ROLE owner_of_tests PASSWORD 'another'")
        other.rollback()
        with pytest.raises(BackupError, match=r"pg_dump failed.*password authentication failed") as caught:
            running.result()
    assert owner.password not in str(caught.value)
    assert list((project / "backups").iterdir()) == []


def test_policies_that_hide_rows_fail_the_backup(
    target: Target,
    project: Path,
    query: Query,
    owner: DatabaseUrl,
    make_target: Callable[[DatabaseUrl], Target],
) -> None:
    query("CREATE TABLE hidden (id int); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY")
    query("GRANT SELECT ON hidden TO owner_of_tests")
    theirs = make_target(replace(owner, database=target.url.database))
    with pytest.raises(
        BackupError, match=r"Policies hide rows of public.hidden from owner_of_tests.*BYPASSRLS"
    ):
        back_up(theirs, Project(project))


def test_a_full_disk_is_told_as_such(target: Target, query: Query) -> None:
    query("CREATE TABLE many AS SELECT gen_random_uuid() FROM generate_series(1, 1000)")
    with pytest.raises(RagFactoryError, match=r"No space left on device.*Make room there"):
        child.run("pg_dump", target, ["--format=custom", "--file=/dev/full", "--no-sync"], at_least=18)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'pg_dump (PostgreSQL) 12.9'", "pg_dump is older than the server, PostgreSQL 18"),
        (None, "The program pg_dump is not here"),
        ("echo 'pg_dump (PostgreSQL) 18.6'; kill -9 $$", "it was ended by SIGKILL"),
    ],
)
def test_a_pg_dump_that_will_not_do_fails_the_backup(
    target: Target, project: Path, tmp_path: Path, script: str | None, says: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("postgres", "initdb", *(("pg_dump",) if script else ())):
        version = "initdb (PostgreSQL) 18.6"
        # The third one answers for its version, and dies when it has work to do.
        work = (script or "").replace("; kill", '; [ "$1" = --version ] || kill')
        (programs / name).write_text(f"#!/bin/sh\n# {version}\n{work}\n")
        (programs / name).chmod(0o755)
    (project / ".env").write_text(f"POSTGRES_BIN_FOLDER={programs}\n")
    config = DatabaseConfig.load(project)
    with pytest.raises(BackupError, match=says):
        back_up(replace(target, config=config), Project(project))
    assert not [*project.glob("backups/*"), *project.glob("backups/.*")]


def test_a_folder_that_can_not_be_is_told(target: Target, project: Path) -> None:
    (project / "backups").write_text("a file")
    with pytest.raises(BackupError, match=r"backups: File exists\. Mend that, or set BACKUP_FOLDER"):
        back_up(target, Project(project))


def test_a_database_that_is_not_there_is_not_a_failed_backup(
    make_target: Callable[[DatabaseUrl], Target], database_url: DatabaseUrl, project: Path
) -> None:
    with pytest.raises(NotReadyError, match="does not exist"):
        back_up(make_target(database_url), Project(project))


# --- the folder ---


def test_only_the_oldest_of_the_same_database_are_removed(target: Target, project: Path) -> None:
    made = [back_up(target, Project(project)) for _ in range(5)]
    folder = project / "backups"
    assert [path.name for path in list_backups(folder)] == [one.name for one in reversed(made)]
    oldest, cut_off, in_use, previous, newest = made
    (cut_off.path / DUMP).write_bytes(b"")
    other = folder / newest.name.replace(target.url.database, "other")
    shutil.copytree(oldest.path, other)  # it says that it is ours, and is named otherwise
    elsewhere = _changed(oldest, folder / f"{target.url.database}_20200101T000000Z_x", system="1")
    (folder / "notes.txt").write_text("mine")
    (folder / ".unfinished-x").mkdir()
    before = {path.name for path in folder.iterdir()}
    assert prune(newest, 0) == []
    with reading(in_use):
        assert prune(newest, 1) == [previous.name, oldest.name]
    assert {path.name for path in folder.iterdir()} == before - {previous.name, oldest.name}
    assert prune(newest, 2) == []
    assert prune(newest, 1) == [in_use.name]
    assert newest.path.exists()
    assert elsewhere.exists()
    # What a killed run left goes with the next one.
    back_up(target, Project(project))
    assert not (folder / ".unfinished-x").exists()


def test_newest_is_the_databases_own(target: Target, project: Path) -> None:
    folder = project / "backups"
    name = target.url.database
    with pytest.raises(UsageError, match=f"no backup of {name} in .*--backup NAME"):
        find_backup(folder, None, name)
    first = back_up(target, Project(project))
    second = back_up(target, Project(project))
    shutil.copytree(first.path, folder / f"{name}_x_29990101T000000Z_base")
    assert find_backup(folder, None, name) == second
    assert find_backup(folder, first.name, name) == first
    for wrong in ("nope", "../backups", ".unfinished-x", "/"):
        with pytest.raises(UsageError):
            find_backup(folder, wrong, name)


def test_damage_is_found(target: Target, project: Path, query: Query) -> None:
    query("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)")
    good = back_up(target, Project(project))

    def flip(backup: Backup) -> None:
        content = bytearray((backup.path / DUMP).read_bytes())
        content[len(content) // 2] ^= 1
        (backup.path / DUMP).write_bytes(content)

    def cut(backup: Backup) -> None:
        os.truncate(backup.path / DUMP, 100)

    def lose_dump(backup: Backup) -> None:
        (backup.path / DUMP).unlink()

    def lose_manifest(backup: Backup) -> None:
        (backup.path / FILE).unlink()

    def edit(backup: Backup) -> None:
        text = (backup.path / FILE).read_text()
        (backup.path / FILE).write_text(text.replace('"public.kept": 1', '"public.kept": 2'))

    def scribble(backup: Backup) -> None:
        (backup.path / FILE).write_text('["not ours"]')

    def age(backup: Backup) -> None:
        text = (backup.path / FILE).read_text()
        (backup.path / FILE).write_text(text.replace('"format": 1', '"format": 2'))

    for damage, says in (
        (flip, "the SHA-256 of database.dump is"),
        (cut, r"database.dump has 100 bytes instead of \d+"),
        (lose_dump, "database.dump can't be read"),
        (lose_manifest, "it has no manifest.json"),
        (edit, "manifest.json was changed after it was written"),
        (scribble, "manifest.json is none of ours"),
        (age, "has format 2; this version reads format 1"),
    ):
        copy = good.path.with_name(f"{good.name}-{damage.__name__}")
        shutil.copytree(good.path, copy)
        damage(replace(good, path=copy))
        with pytest.raises(RagFactoryError, match=says) as caught:
            prepare(open_backup(copy), target, Project(project), no_owner=False).run(jobs=1, wait_seconds=0)
        assert caught.value.exit_code == 1
        assert good.name in str(caught.value)
    assert query("SELECT count(*) FROM kept") == [(1,)]


def _changed(backup: Backup, path: Path, **values: Any) -> Path:
    """A copy of a backup whose manifest says something else, with a sum that is right."""
    shutil.copytree(backup.path, path)
    (path / FILE).unlink()
    replace(backup.manifest, **values).write(path)
    return path


def _look(url: DatabaseUrl) -> list[Any]:
    """The schema, and all rows of all tables."""
    with psycopg.connect(url.plain) as connection:
        tables = connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm') AND oid >= 16384 ORDER BY 1"
        ).fetchall()
        rows = [
            (table, connection.execute(f"SELECT * FROM ONLY {table} ORDER BY 1".encode()).fetchall())
            for (table,) in tables
        ]
        return [read_schema(connection), rows]
