"""The engine on Alembic projects it has never seen, as `alembic init` makes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.conftest import PASSWORD, CommandLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl

    Dump = Callable[[DatabaseUrl], str]
    Query = Callable[..., list[tuple[Any, ...]]]

TASKS = """from pathlib import Path
from rag_factory.tasks import build_namespace
namespace = build_namespace(Path(__file__).parent)
"""
MODELS = """
import sqlalchemy as sa

metadata = sa.MetaData()
ships = sa.Table("ships", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
"""
MODEL_IMPORT = "from fleet import metadata as target_metadata"
SETTINGS = "[tool.rag_factory]\nextensions = []\n"


@pytest.fixture
def foreign(tmp_path: Path, database_url: DatabaseUrl) -> Callable[..., CommandLine]:
    """Make a project with Alembic's own template; the engine knows no name in it."""

    def make(template: str = "generic", settings: str = SETTINGS, **replaced: str) -> CommandLine:
        root = tmp_path / "fleet"
        root.mkdir()
        subprocess.run(
            [sys.executable, "-m", "alembic", "init", "-t", template, "db_scripts"],
            cwd=root,
            check=True,
            capture_output=True,
        )
        (root / "tasks.py").write_text(TASKS)
        (root / "fleet.py").write_text(MODELS)
        pyproject = root / "pyproject.toml"
        pyproject.write_text((pyproject.read_text() if pyproject.exists() else "") + settings)
        env = root / "db_scripts" / "env.py"
        text = env.read_text().replace("target_metadata = None", MODEL_IMPORT)
        for old, new in replaced.items():
            assert OLD[old] in text
            text = text.replace(OLD[old], new)
        env.write_text(text)
        return CommandLine(root, {"DATABASE_URL": database_url.plain})

    return make


OLD = {"connect": "connection=connection, target_metadata=target_metadata"}


@pytest.mark.parametrize("template", ["async", "pyproject"])
def test_other_templates_of_alembic_are_served(foreign: Callable[..., CommandLine], template: str) -> None:
    cli = foreign(template)
    path = _written(_run(cli, "db.create", "db.revision", "-m", "ships"))
    assert path.parent == cli.root / "db_scripts" / "versions"
    _run(cli, "db.migrate", "db.check", "db.rollback", "--all", "--yes")
    _run(cli, "db.migrate", "db.status")


def test_project_of_alembics_template_is_served(
    foreign: Callable[..., CommandLine], database_url: DatabaseUrl, dump: Dump, query: Query
) -> None:
    cli = foreign()
    first = _written(_run(cli, "db.create", "db.migrate", "db.revision", "-m", "ships"))
    assert first.parent == cli.root / "db_scripts" / "versions"
    done = _run(cli, "db.status", "--json", code=5)
    first_id = json.loads(done.stdout)["heads"][0]
    assert re.fullmatch("[0-9a-f]{12}", first_id)
    _run(cli, "db.migrate", "db.check")
    second = _written(_run(cli, "db.revision", "--empty", "-m", "second"))
    second.write_text(
        second.read_text().replace(
            "pass", "op.execute('SET LOCAL work_mem = 64')\n    print('hello')\n    _show()", 1
        )
        + "\ndef _show():\n    for name in ('lock_timeout', 'statement_timeout'):\n"
        "        print(op.get_bind().exec_driver_sql(f'SHOW {name}').scalar())\n"
    )
    up = _run(cli, "db.migrate", DB_LOCK_TIMEOUT_SECONDS="1.5", DB_STATEMENT_TIMEOUT_SECONDS="90")
    # What a revision prints is prose, and its session has the settings' timeouts.
    assert up.stdout == ""
    assert up.stderr.index("hello\n1500ms\n90s\n") < up.stderr.index(" second  ")
    done = _run(cli, "db.history", "db.show", first_id[:6], "db.heads")
    assert [line.split()[1] for line in done.stdout.splitlines()[:2]] == ["second", "ships"]
    assert first.read_text().strip() in done.stdout
    migrated = dump(database_url)
    script = _run(cli, "db.rollback", "--all", "--sql").stdout
    assert "DROP TABLE ships" in script
    _run(cli, "db.rollback", "--yes", "db.rollback", "--all", "--yes")
    assert query("SELECT to_regclass('ships') IS NULL") == [(True,)]
    assert "CREATE TABLE ships" in _run(cli, "db.migrate", "--to", first_id, "--sql").stdout
    _run(cli, "db.stamp", "head", "db.stamp", "base", "db.migrate")
    assert dump(database_url) == migrated
    (cli.root / "fleet.py").write_text(MODELS.replace("sa.Text", "sa.Integer"))
    done = _run(cli, "db.check", code=6)
    assert "op.alter_column('ships', 'name'" in done.stdout


def test_version_table_of_its_own(foreign: Callable[..., CommandLine], query: Query) -> None:
    elsewhere = f'{OLD["connect"]}, version_table="log", version_table_schema="yard"'
    settings = f'{SETTINGS}version_table = "log"\nversion_table_schema = "yard"\n'
    cli = foreign("generic", settings, connect=elsewhere)
    _run(cli, "db.create")
    query("CREATE SCHEMA yard")
    _written(_run(cli, "db.revision", "-m", "ships"))
    _run(cli, "db.migrate", "db.check", "db.status")
    assert query("SELECT count(*) FROM yard.log") == [(1,)]
    _run(cli, "db.rollback", "--yes", "db.migrate")
    # Not told about it, the engine says so instead of running the revisions again and again.
    (cli.root / "pyproject.toml").write_text(SETTINGS)
    _run(cli, "db.rollback", "--all", "--yes")
    query("DROP TABLE ships")
    query("DELETE FROM yard.log")
    done = _run(cli, "db.migrate", code=1)
    assert "Set version_table in [tool.rag_factory]" in done.stderr


def test_several_folders_labels_and_dependencies(
    foreign: Callable[..., CommandLine], query: Query, database_url: DatabaseUrl, dump: Dump
) -> None:
    cli = foreign()
    ini = cli.root / "alembic.ini"
    (cli.root / "more").mkdir()
    ini.write_text(
        ini.read_text().replace(
            "script_location = ",
            "version_locations = %(here)s/db_scripts/versions:%(here)s/more\nscript_location = ",
            1,
        )
    )
    _revision(cli, "db_scripts/versions/a.py", "a1", None, 'branch_labels = "hull"')
    _revision(cli, "db_scripts/versions/b.py", "a2", "a1")
    _revision(cli, "more/c.py", "b1", None, 'branch_labels = "sails"\ndepends_on = "a1"')
    _revision(cli, "more/d.py", "b2", "b1", 'depends_on = "hull"')
    assert "has 2 heads: a2, b2" in _run(cli, "db.migrate", code=7).stderr
    done = _run(cli, "db.migrate", "--to", "b2")
    assert _ids(done, "+") == ["a1", "b1", "b2"]
    assert _ids(_run(cli, "db.migrate", "--to", "a2"), "+") == ["a2"]
    merge = _written(_run(cli, "db.merge"))
    merged = dump(database_url)
    assert merge.parent.name in {"versions", "more"}
    merge_id = _ids(_run(cli, "db.migrate"), "+")[0]
    done = _run(cli, "db.rollback", "--all", "--yes")
    assert _ids(done, "-")[0] == merge_id
    assert sorted(_ids(done, "-")[1:]) == ["a1", "a2", "b1", "b2"]
    assert query("SELECT count(*) FROM alembic_version") == [(0,)]
    assert query("SELECT to_regclass('t_a1') IS NULL, to_regclass('t_b2') IS NULL") == [(True, True)]
    _run(cli, "db.migrate")
    assert dump(database_url) == merged
    shutil.copy(cli.root / "more" / "d.py", cli.root / "more" / "e.py")
    assert "b2 is present more than once" in _run(cli, "db.status", code=7).stderr


def test_env_that_fails_is_named(foreign: Callable[..., CommandLine]) -> None:
    cli = foreign()
    _run(cli, "db.create")
    _revision(cli, "db_scripts/versions/a.py", "a1", None)
    (cli.root / "fleet.py").write_text("import no_such_module\n")
    done = _run(cli, "db.migrate", code=1)
    last = done.stderr.splitlines()[-1]
    assert "Running env.py failed: ModuleNotFoundError: No module named 'no_such_module'" in last
    assert "fleet.py, line 1" in last
    (cli.root / "fleet.py").write_text("metadata = None\n")
    _run(cli, "db.migrate")
    done = _run(cli, "db.check", code=1)
    assert "does not provide a MetaData object" in done.stderr


def _run(
    cli: CommandLine, *arguments: str, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = replace(cli, environment=cli.environment | environment).invoke(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "should not happen" not in done.stderr
    return done


def _written(done: subprocess.CompletedProcess[str]) -> Path:
    path = Path(done.stdout.strip())
    assert path.is_file(), done.stdout
    return path


def _ids(done: subprocess.CompletedProcess[str], mark: str) -> list[str]:
    return [line.split()[1] for line in done.stderr.splitlines() if line.startswith(f"{mark} ")]


def _revision(cli: CommandLine, path: str, id_: str, parent: str | None, more: str = "") -> None:
    (cli.root / path).write_text(
        f'"""{id_}"""\n\nfrom alembic import op\n\nrevision = {id_!r}\ndown_revision = {parent!r}\n'
        f"{more}\n\n\n"
        f'def upgrade():\n    op.execute("CREATE TABLE t_{id_} (id int)")\n\n\n'
        f'def downgrade():\n    op.execute("DROP TABLE t_{id_}")\n'
    )


def test_environment_that_connects_elsewhere_is_refused(
    foreign: Callable[..., CommandLine], database_url: DatabaseUrl, query: Query
) -> None:
    cli = foreign()
    _written(_run(cli, "db.create", "db.revision", "-m", "ships"))
    env = cli.root / "db_scripts" / "env.py"
    own = 'config.set_main_option("sqlalchemy.url", os.environ["OWN"].replace("%", "%%"))\n'
    env.write_text("import os\n" + env.read_text().replace(MODEL_IMPORT, own + MODEL_IMPORT))
    other = database_url.with_database(f"{database_url.database}_b")
    aside = replace(cli, environment={"DATABASE_URL": other.plain, "OWN": database_url.plain})
    try:
        _run(aside, "db.create")
        for tasks in (["db.migrate"], ["db.stamp", "head"], ["db.check"]):
            done = _run(aside, *tasks, code=3)
            assert f"env.py connects to the database {database_url.database}, not to" in done.stderr
        assert query("SELECT to_regclass('ships') IS NULL") == [(True,)]
    finally:
        _run(aside, "db.drop", "--yes")


def test_password_in_a_foreign_error_is_masked(foreign: Callable[..., CommandLine]) -> None:
    cli = foreign()
    _written(_run(cli, "db.create", "db.revision", "-m", "ships"))
    env = cli.root / "db_scripts" / "env.py"
    own = 'config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"])\n'
    env.write_text("import os\n" + env.read_text().replace(MODEL_IMPORT, own + MODEL_IMPORT))
    for arguments in (["db.migrate"], ["db.migrate", "--debug"]):
        done = cli.invoke(*arguments)
        assert done.returncode == 1
        assert "invalid interpolation syntax" in done.stderr
        assert quote(PASSWORD, safe="") not in done.stderr
        assert PASSWORD not in done.stderr


def test_editors_lock_file_is_no_revision(foreign: Callable[..., CommandLine]) -> None:
    cli = foreign()
    path = _written(_run(cli, "db.create", "db.revision", "-m", "ships"))
    path.with_name(f".#{path.name}").symlink_to("somebody@somewhere.1234")
    _run(cli, "db.migrate", "db.history")
