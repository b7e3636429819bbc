"""Static lint: each rule on a revision that breaks it and on one that does the same thing well."""

from __future__ import annotations

import json
import subprocess
import textwrap
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rag_factory.errors import NotReadyError, UsageError
from rag_factory.migrate.lint import Finding, Report, lint, output
from rag_factory.migrate.lint.squawk import OFF
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.conftest import Tasks

HEAD = """\"\"\"a revision\"\"\"
from alembic import op
revision = {id!r}
down_revision = {parent!r}
depends_on = None
branch_labels = None
"""
DOWN = "def downgrade():\n    op.execute('SELECT 1')\n"
AUTOCOMMIT = "with op.get_context().autocommit_block():\n    "


class Case(NamedTuple):
    """A rule, what breaks it, and what doesn't. down: the text of downgrade, of both."""

    rule: str
    bad: str
    good: str


def sql(*statements: str, outside: bool = False) -> str:
    calls = [f"op.execute({statement!r})" for statement in statements]
    return AUTOCOMMIT + "\n    ".join(calls) if outside else "\n".join(calls)


CASES = [
    Case(
        "autocommit-not-alone",
        sql("SELECT 1") + "\n" + sql("VACUUM docs", outside=True),
        sql("VACUUM docs", "ANALYZE docs", outside=True),
    ),
    Case(
        "enum-value-used-where-added",
        sql("ALTER TYPE mood ADD VALUE IF NOT EXISTS 'so-so'", "UPDATE docs SET mood = 'so-so' WHERE id = 1"),
        sql(
            "CREATE TYPE other AS ENUM ('a')",
            "ALTER TYPE other ADD VALUE 'b'; SELECT 'b'::other",
            "ALTER TYPE mood ADD VALUE 'glad'",
            "SELECT 'sad'::mood -- 'glad'",
        ),
    ),
    Case(
        "vector-type-changed",
        "op.execute('ALTER TABLE docs\\n  ALTER COLUMN embedding SET DATA TYPE halfvec(768)')",
        sql("ALTER TABLE docs ADD COLUMN embedding_new halfvec(768)"),
    ),
    Case(
        "hnsw-without-operator-class",
        sql("CREATE INDEX CONCURRENTLY i ON docs USING hnsw (embedding)", outside=True),
        sql(
            "DROP INDEX CONCURRENTLY IF EXISTS i",
            "CREATE INDEX CONCURRENTLY i ON docs USING hnsw (embedding vector_cosine_ops)",
            outside=True,
        ),
    ),
    Case(
        "hnsw-above-dimension-limit",
        "op.create_table('big', sa.Column('v', Vector(3072)))\n"
        "op.create_index('i', 'big', ['v'], postgresql_using='hnsw', postgresql_ops={'v': 'vector_l2_ops'})",
        "op.create_table('big', sa.Column('v', Vector(3072)))\n"
        + sql("CREATE INDEX i ON big USING hnsw ((v::halfvec(3072)) halfvec_l2_ops)"),
    ),
    Case(
        "index-not-concurrently",
        "op.create_index('i', 'docs', ['id'], unique=True)",
        "op.create_table('small', sa.Column('id', sa.BigInteger))\nop.create_index('i', 'small', ['id'])",
    ),
    Case(
        "index-if-not-exists",
        sql("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON docs (id)", outside=True),
        sql("DROP INDEX CONCURRENTLY IF EXISTS i", "CREATE INDEX CONCURRENTLY i ON docs (id)", outside=True),
    ),
    Case("sql-unknown", "op.get_bind().execute('SELECT 1').scalar()", sql("SELECT 1")),
    # What squawk says: with the transactions of the revision, and without what we know to be safe.
    Case(
        "prefer-robust-stmts",
        sql("ALTER TABLE docs ADD COLUMN extra text", outside=True),
        sql(
            "ALTER TABLE docs ADD COLUMN IF NOT EXISTS extra text",
            "ALTER TABLE docs VALIDATE CONSTRAINT c",
            outside=True,
        ),
    ),
    Case(
        "adding-foreign-key-constraint",
        sql("ALTER TABLE docs ADD COLUMN owner bigint DEFAULT 1 REFERENCES owners"),
        sql("ALTER TABLE docs ADD COLUMN owner bigint REFERENCES owners, ADD COLUMN extra text DEFAULT ''"),
    ),
    Case(
        "constraint-missing-not-valid",
        sql("ALTER TABLE docs ADD CONSTRAINT c CHECK (id > 0)"),
        sql("ALTER TABLE docs ADD CONSTRAINT c CHECK (id > 0) NOT VALID"),
    ),
    Case("ban-drop-column", sql("ALTER TABLE docs DROP COLUMN id"), sql("COMMENT ON COLUMN docs.id IS 'x'")),
    Case(
        "ban-drop-table",
        "# lint: ignore ban-drop-table:\n" + sql("DROP TABLE docs -- squawk-ignore ban-drop-table"),
        "# lint: ignore ban-drop-table: nobody has read it since spring\n" + sql("DROP TABLE docs"),
    ),
    Case("ignore-without-reason", "# lint: ignore\n" + sql("SELECT 1"), sql("SELECT '# lint: ignore'")),
    Case(
        "ignore-unused",
        "# lint: ignore ban-drop-table: no reason at all\n" + sql("SELECT 1"),
        sql("SELECT 1"),
    ),
]
# Texts of the whole rest of a file: what the rules on downgrade look at.
DOWNGRADES = [
    ("missing-downgrade", "def upgrade():\n    op.execute('SELECT 1')\n", 7),
    ("empty-downgrade", "def upgrade():\n    op.execute('SELECT 1')\ndef downgrade():\n    pass\n", 9),
    (
        "",
        "def upgrade():\n    op.execute('SELECT 1')\ndef downgrade():\n    '''Nothing: it only read.'''\n",
        0,
    ),
    ("", "def upgrade():\n    op.execute('SELECT 1')\ndef downgrade():\n    raise RuntimeError('gone')\n", 0),
    ("", "def upgrade():\n    pass\ndef downgrade():\n    pass\n", 0),
]
FIRST = sql("CREATE TABLE docs (id bigint, embedding vector(1536))", "CREATE TYPE mood AS ENUM ('sad')")


def make_project(root: Path, files: dict[str, str]) -> Project:
    """A project with these revisions, one after the other. files: what follows their ids."""
    versions = root / "db" / "versions"
    versions.mkdir(parents=True)
    (root / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/db\n")
    (root / "db" / "env.py").write_text(
        "from sqlalchemy import MetaData\nfrom rag_factory.migrate.environment import run_environment\n"
        "run_environment(MetaData())\n"
    )
    parent = None
    for id_, text in files.items():
        (versions / f"{id_}.py").write_text(HEAD.format(id=id_, parent=parent) + text)
        parent = id_
    return Project(root)


def up(body: str) -> str:
    imports = "import sqlalchemy as sa\nfrom pgvector.sqlalchemy import Vector\n"
    return f"{imports}def upgrade():\n{textwrap.indent(body, '    ')}\n{DOWN}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """What is found in a project of all the cases, by revision."""
    files = {"first": up(FIRST)}
    files |= {f"bad_{number}": up(case.bad) for number, case in enumerate(CASES)}
    files |= {f"good_{number}": up(case.good) for number, case in enumerate(CASES)}
    files |= {f"down_{number}": text for number, (_, text, _) in enumerate(DOWNGRADES)}
    report = lint(make_project(tmp_path_factory.mktemp("lint"), files))
    assert report.revisions == len(files)
    by_revision: dict[str, list[Finding]] = {id_: [] for id_ in files}
    for finding in report.findings:
        by_revision[finding.path.removeprefix("db/versions/").removesuffix(".py")].append(finding)
    assert by_revision["first"] == []
    return by_revision


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule_finds_what_breaks_it_and_nothing_else(found: dict[str, list[Finding]], case: Case) -> None:
    number = CASES.index(case)
    assert found[f"good_{number}"] == []
    (finding,) = [each for each in found[f"bad_{number}"] if each.rule == case.rule]
    assert finding.message
    assert finding.fix
    assert not {each.rule for each in found[f"bad_{number}"]} & OFF.keys()


@pytest.mark.parametrize(("number", "rule", "line"), [(n, d[0], d[2]) for n, d in enumerate(DOWNGRADES)])
def test_downgrade_is_there_or_says_why_not(
    found: dict[str, list[Finding]], number: int, rule: str, line: int
) -> None:
    assert [(each.rule, each.line) for each in found[f"down_{number}"]] == ([(rule, line)] if rule else [])


def test_finding_is_at_the_line_of_the_call(found: dict[str, list[Finding]]) -> None:
    lines = {each.rule: each.line for findings in found.values() for each in findings}
    assert lines["index-not-concurrently"] == 10  # in the first line of upgrade
    assert lines["hnsw-above-dimension-limit"] == 11
    assert lines["ban-drop-table"] == 11  # below a comment
    assert lines["autocommit-not-alone"] == 12  # within the block


def test_changed_vector_is_told_once(found: dict[str, list[Finding]]) -> None:
    number = next(at for at, case in enumerate(CASES) if case.rule == "vector-type-changed")
    assert [each.rule for each in found[f"bad_{number}"]] == ["vector-type-changed"]


def test_operations_of_the_engine_are_safe_as_they_are(tmp_path: Path) -> None:
    project = make_project(tmp_path, {"first": up(FIRST), "second": up("made_here()")})
    # Stands for any operation of the engine: what counts is the module that runs the SQL.
    path = tmp_path / "db" / "versions" / "second.py"
    operation = (
        'module = {"__name__": "rag_factory.migrate.operations", "op": op}\n'
        "exec('def made_here():\\n    op.execute(\"CREATE INDEX i ON docs (id)\")', module)\n"
        'made_here = module["made_here"]\n'
    )
    path.write_text(path.read_text().replace("def upgrade", operation + "def upgrade"))
    assert lint(project).findings == ()
    path.write_text(path.read_text().replace("rag_factory.migrate.operations", "somewhere"))
    assert [finding.rule for finding in lint(project).findings] == ["index-not-concurrently"]


def test_since_looks_at_what_is_new_only(tmp_path: Path) -> None:
    body = up("op.create_index('i', 'docs', ['id'])")
    project = make_project(tmp_path, {"first": up(FIRST), "second": body, "third": body, "fourth": body})
    versions = tmp_path / "db" / "versions"
    kept = {name: (versions / f"{name}.py").read_text() for name in ("third", "fourth")}
    with pytest.raises(NotReadyError, match="is not in a git repository"):
        lint(project, "main")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for name in kept:
        (versions / f"{name}.py").unlink()
    commit(tmp_path)
    git(tmp_path, "checkout", "--quiet", "-b", "work")
    (versions / "third.py").write_text(kept["third"])
    commit(tmp_path)
    (versions / "fourth.py").write_text(kept["fourth"])
    # What main gained since is not this branch's.
    git(tmp_path, "checkout", "--quiet", "main")
    (tmp_path / "db" / "versions" / "second.py").write_text((versions / "second.py").read_text() + "\n")
    git(tmp_path, "add", "db/versions/second.py")
    commit(tmp_path, "db/versions/second.py")
    git(tmp_path, "checkout", "--quiet", "work")
    report = lint(project, "main")
    assert [finding.path for finding in report.findings] == [
        "db/versions/fourth.py",
        "db/versions/third.py",
    ]
    assert lint(project, "work").revisions == 1
    with pytest.raises(UsageError, match="--since is nowhere, from which git finds no way"):
        lint(project, "nowhere")


def test_findings_as_annotations_and_sarif() -> None:
    finding = Finding("db/a,b.py", 3, "some-rule", "100% wrong:\nreally", "better")
    assert output.as_annotations([finding]) == (
        "::error file=db/a%2Cb.py,line=3,title=some-rule::100%25 wrong:%0Areally Instead: better"
    )
    (run,) = output.as_sarif([finding])["runs"]
    assert run["tool"]["driver"]["rules"] == [{"id": "some-rule"}]
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("db/a,b.py", 3)


def test_shipped_revisions_are_clean() -> None:
    from tests.conftest import ROOT

    assert lint(Project(ROOT)) == Report((), len(list((ROOT / "migrations" / "versions").glob("*.py"))))


def test_task_ends_with_1_where_something_is_found(tasks: Tasks) -> None:
    done = tasks.succeed("db.lint")
    assert (done.stdout, done.stderr) == ("", "nothing found in 2 revisions\n")
    path = next((tasks.cli.root / "migrations" / "versions").glob("002_*.py"))
    path.write_text(path.read_text().replace("# lint: ignore autocommit-not-alone: ", "# "))
    done = tasks.run("db.lint", "--json", "--sarif", "found.sarif")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("1 finding in 2 revisions. Change them as advised")
    (finding,) = json.loads(done.stdout)
    assert (finding["path"], finding["rule"]) == (f"migrations/versions/{path.name}", "autocommit-not-alone")
    sarif = json.loads((tasks.cli.root / "found.sarif").read_text())
    assert sarif["runs"][0]["results"][0]["ruleId"] == "autocommit-not-alone"
    tasks.fail(2, "db.lint", "--json", "--github", says="--json and --github exclude each other")
    tasks.fail(3, "db.lint", "--since", "main", says="git is not installed.*leave out --since", PATH="")


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(folder: Path, *paths: str) -> None:
    if not paths:
        git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=work")
