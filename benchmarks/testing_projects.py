"""The projects that the test databases are measured with: equal tables for our engine, Alembic and Django."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TABLES = 12
# The first revision creates three tables, the next nine one each; what follows adds a column to one of them.
SMALL = 10
TESTS = 400

ALEMBIC_INI = "[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n"
OUR_PYPROJECT = """\
[tool.rag_factory]
extensions = []

[tool.pytest.ini_options]
testpaths = ["tests"]
asyncio_default_fixture_loop_scope = "function"
"""
OUR_ENV = """\
from sqlalchemy import MetaData

from rag_factory.migrate.environment import run_environment

run_environment(MetaData())
"""
# What Alembic's generic template comes to without its comments.
PLAIN_ENV = """\
from alembic import context
from sqlalchemy import engine_from_config, pool

section = context.config.get_section(context.config.config_ini_section, {})
engine = engine_from_config(section, prefix="sqlalchemy.", poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = '''\
"""Revision {revision}."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {parent!r}


def upgrade() -> None:
{body}

def downgrade() -> None:
    raise NotImplementedError
'''
CREATE = """\
    op.create_table(
        "{table}",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("{table}_position", "{table}", ["position"])
"""
ADD = '    op.add_column("{table}", sa.Column("extra_{number}", sa.Integer))\n'
DJANGO_MIGRATION = """\
from django.db import migrations, models
from django.utils import timezone


class Migration(migrations.Migration):
    dependencies = {parents}
    operations = [{operations}
    ]
"""
DJANGO_CREATE = """
        migrations.CreateModel(
            name="{model}",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100)),
                ("note", models.TextField()),
                ("position", models.IntegerField(db_index=True)),
                ("created_at", models.DateTimeField(default=timezone.now)),
            ],
            options={{"db_table": "{table}"}},
        ),"""
DJANGO_MODEL = """

class {model}(models.Model):
    name = models.CharField(max_length=100)
    note = models.TextField()
    position = models.IntegerField(db_index=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "{table}"
"""
ALCHEMY_TESTS = f"""\
import pytest
from models import Item
from sqlalchemy import func, select


@pytest.mark.parametrize("number", range({TESTS}))
def test_insert(db_connection, number):
    db_connection.add(Item(name="one", position=number))
    db_connection.commit()
    assert db_connection.scalar(select(func.count()).select_from(Item)) == 1
"""
DJANGO_TESTS = f"""\
import pytest
from shop.models import Item01


@pytest.mark.django_db
@pytest.mark.parametrize("number", range({TESTS}))
def test_insert(number):
    Item01.objects.create(name="one", position=number)
    assert Item01.objects.count() == 1
"""
# The recipe of its documentation for SQLAlchemy.
PYTEST_POSTGRESQL_CONFTEST = """\
import os
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from pytest_postgresql import factories
from sqlalchemy import URL, NullPool, create_engine
from sqlalchemy.orm import Session


def address(host, port, user, dbname):
    query = {"host": host, "port": str(port)}
    return URL.create("postgresql+psycopg", username=user, database=dbname, query=query)


def upgrade(host, port, user, dbname, **_):
    config = Config(Path(__file__).with_name("alembic.ini"))
    url = address(host, port, user, dbname).render_as_string()
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")


server = factories.postgresql_noproc(
    host=os.environ["HOST"], port=os.environ["PORT"], user=os.environ["ACCOUNT"], load=[upgrade]
)
postgresql = factories.postgresql("server")


@pytest.fixture
def db_connection(postgresql):
    info = postgresql.info
    url = address(info.host, info.port, info.user, info.dbname)
    with Session(create_engine(url, poolclass=NullPool)) as session:
        yield session
"""
# What one writes without a tool for it: each worker makes and migrates its own database, when it isn't there.
EACH_CONFTEST = """\
import os
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session


@pytest.fixture(scope="session")
def engine(worker_id):
    where, user = {"host": os.environ["HOST"], "port": os.environ["PORT"]}, os.environ["ACCOUNT"]
    name = f"each_{worker_id}"
    url = URL.create("postgresql+psycopg", username=user, database=name, query=where)
    with psycopg.connect(**where, user=user, dbname="postgres", autocommit=True) as server:
        kept = server.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if not kept:
            server.execute(f"CREATE DATABASE {name}")
    if not kept:
        from alembic import command
        from alembic.config import Config

        config = Config(Path(__file__).with_name("alembic.ini"))
        config.set_main_option("sqlalchemy.url", url.render_as_string().replace("%", "%%"))
        command.upgrade(config, "head")
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def db_connection(engine):
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
"""
MODEL = """\
from datetime import UTC, datetime

from sqlalchemy import DateTime, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item_01"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), default="")
    note: Mapped[str] = mapped_column(default="")
    position: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), default=lambda: datetime.now(tz=UTC)
    )
"""
DJANGO_SETTINGS = """\
import os

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "shop",
        "HOST": os.environ["HOST"],
        "PORT": os.environ["PORT"],
        "USER": os.environ["ACCOUNT"],
    }
}
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""


def write_our_project(folder: Path, server_home: Path, revisions: int = SMALL) -> None:
    """Write a project with its tests; its test server has its home in `server_home`."""
    write_revisions(folder, OUR_ENV, revisions)
    write(folder / "pyproject.toml", OUR_PYPROJECT)
    write(folder / ".env", f"EMBEDDED_DATA_FOLDER={server_home}\n")
    write(folder / "tests/conftest.py", 'pytest_plugins = ["rag_factory.testing.plugin"]\n')
    write(folder / "tests/models.py", MODEL)
    write(folder / "tests/test_items.py", ALCHEMY_TESTS)


def write_alembic_project(folder: Path, conftest: str = PYTEST_POSTGRESQL_CONFTEST) -> None:
    """Write the same revisions for Alembic alone, with the same tests."""
    write_revisions(folder, PLAIN_ENV, SMALL)
    write(folder / "pytest.ini", "[pytest]\n")
    write(folder / "conftest.py", conftest)
    write(folder / "models.py", MODEL)
    write(folder / "test_items.py", ALCHEMY_TESTS)


def write_django_project(folder: Path) -> None:
    """Write the same tables as a Django app, with as many migrations, and tests by pytest-django."""
    models = "from django.db import models\nfrom django.utils import timezone\n"
    for number in range(1, TABLES + 1):
        models += DJANGO_MODEL.format(model=f"Item{number:02}", table=table(number))
    write(folder / "shop/__init__.py", "")
    write(folder / "shop/models.py", models)
    write(folder / "shop/migrations/__init__.py", "")
    for revision in range(1, SMALL + 1):
        parents = [("shop", f"{revision - 1:04}_step")] if revision > 1 else []
        operations = "".join(
            DJANGO_CREATE.format(model=f"Item{number:02}", table=table(number))
            for number in tables_of(revision)
        )
        text = DJANGO_MIGRATION.format(parents=parents, operations=operations)
        write(folder / f"shop/migrations/{revision:04}_step.py", text)
    write(folder / "settings.py", DJANGO_SETTINGS)
    write(folder / "pytest.ini", "[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\n")
    write(folder / "test_items.py", DJANGO_TESTS)


def write_revisions(folder: Path, env: str, revisions: int) -> None:
    """Write an Alembic environment."""
    write(folder / "alembic.ini", ALEMBIC_INI)
    write(folder / "migrations/env.py", env)
    for revision in range(1, revisions + 1):
        body = "".join(CREATE.format(table=table(number)) for number in tables_of(revision))
        if not body:
            body = ADD.format(table=table(revision % TABLES + 1), number=revision)
        parent = f"{revision - 1:03}" if revision > 1 else None
        text = REVISION.format(revision=f"{revision:03}", parent=parent, body=body)
        write(folder / f"migrations/versions/{revision:03}_step.py", text)


def tables_of(revision: int) -> range:
    """The numbers of the tables that a revision creates."""
    if revision == 1:
        return range(1, TABLES - SMALL + 2)
    return range(TABLES - SMALL + revision, TABLES - SMALL + revision + (revision <= SMALL))


def table(number: int) -> str:
    """A table's name."""
    return f"item_{number:02}"


def write(path: Path, text: str) -> None:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
