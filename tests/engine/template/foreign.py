"""Two Alembic projects of other people, of different shapes, with tests of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

REVISION = '''"""{message}"""

import sqlalchemy as sa
from alembic import op

revision = "{id}"
down_revision = {parent!r}
branch_labels = {labels!r}
depends_on = None


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
'''

# A src layout, revisions in two folders, a synchronous env.py that has its address from its own settings.
FLEET = {
    "alembic.ini": """\
[alembic]
script_location = src/fleet/migrations
version_locations = src/fleet/migrations/versions:src/fleet/crew_versions
path_separator = :
prepend_sys_path = src
""",
    "pyproject.toml": """\
[project]
name = "fleet"
version = "1.0"
requires-python = ">=3.11"
dependencies = ["alembic", "psycopg[binary]", "sqlalchemy"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["src/fleet"]
""",
    "src/fleet/__init__.py": "",
    "src/fleet/settings.py": """\
import os

URL = os.environ.get("FLEET_URL", "postgresql+psycopg://nobody@localhost:1/fleet")
""",
    "src/fleet/models.py": """\
import sqlalchemy as sa

metadata = sa.MetaData()
ships = sa.Table("ships", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
crew = sa.Table("crew", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
""",
    "src/fleet/migrations/env.py": """\
from alembic import context
from sqlalchemy import create_engine

from fleet import settings
from fleet.models import metadata

config = context.config
config.set_main_option("sqlalchemy.url", settings.URL)


def run_migrations_offline():
    context.configure(url=settings.URL, target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online():
    engine = create_engine(settings.URL)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, version_table="fleet_version")
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
""",
    "src/fleet/migrations/versions/1_ships.py": REVISION.format(
        message="ships",
        id="1",
        parent=None,
        labels=None,
        upgrade='op.create_table("ships", sa.Column("id", sa.Integer, primary_key=True), '
        'sa.Column("name", sa.Text))',
        downgrade='op.drop_table("ships")',
    ),
    "src/fleet/crew_versions/2_crew.py": REVISION.format(
        message="crew",
        id="2",
        parent="1",
        labels=None,
        upgrade='op.create_table("crew", sa.Column("id", sa.Integer, primary_key=True), '
        'sa.Column("name", sa.Text))',
        downgrade='op.drop_table("crew")',
    ),
    "tests/conftest.py": '"""What the tests of the fleet share."""\n\nimport pytest\n',
    "tests/test_ships.py": """\
import sqlalchemy as sa
from fleet.models import crew, ships


def test_ships_have_a_crew(db_connection):
    db_connection.execute(sa.insert(ships).values(name="Argo"))
    db_connection.execute(sa.insert(crew).values(name="Jason"))
    db_connection.commit()
    assert db_connection.scalars(sa.select(ships.c.name)).all() == ["Argo"]


def test_nothing_is_left_of_other_tests(db_connection):
    assert db_connection.scalar(sa.select(sa.func.count()).select_from(ships)) == 0
""",
}

# A flat one that pyproject.toml configures; its env.py connects by asyncpg, to an address of its own.
LIBRARY = {
    "pyproject.toml": """\
[project]
name = "library"
version = "1.0"
requires-python = ">=3.11"
dependencies = ["alembic", "asyncpg", "sqlalchemy[asyncio]"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["library"]

[tool.alembic]
script_location = "%(here)s/db"
prepend_sys_path = ["."]

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
""",
    "library/__init__.py": "",
    "library/models.py": """\
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
""",
    "db/env.py": """\
import asyncio
import os

from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import async_engine_from_config

from library.models import Base

config = context.config


def do_run_migrations(connection):
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def run_async_migrations():
    section = config.get_section(config.config_ini_section, {})
    section["sqlalchemy.url"] = os.environ.get("LIBRARY_URL", "postgresql+asyncpg://nobody@localhost:1/library")
    connectable = async_engine_from_config(section, prefix="sqlalchemy.", poolclass=pool.NullPool)
    async with connectable.connect() as connection:
        await connection.run_sync(do_run_migrations)
    await connectable.dispose()


if context.is_offline_mode():
    context.configure(url="postgresql+asyncpg://", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(run_async_migrations())
""",
    "db/script.py.mako": "${upgrades}\n",
    "db/versions/a1_books.py": REVISION.format(
        message="books",
        id="a1",
        parent=None,
        labels=("main",),
        upgrade='op.create_table("books", sa.Column("id", sa.Integer, primary_key=True), '
        'sa.Column("title", sa.String, nullable=False))',
        downgrade='op.drop_table("books")',
    ),
    "tests/test_books.py": """\
from sqlalchemy import select

from library.models import Book


async def test_book_is_kept(async_db_connection):
    async_db_connection.add(Book(title="The Birds"))
    await async_db_connection.commit()
    assert (await async_db_connection.scalars(select(Book.title))).all() == ["The Birds"]


async def test_nothing_is_left_of_other_tests(async_db_connection):
    assert (await async_db_connection.scalars(select(Book.title))).all() == []
""",
    "tasks.py": '"""Tasks that the library had before."""\n\nfrom invoke import task\n\n\n'
    '@task\ndef lend(context):\n    """Lend a book."""\n',
}


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write a project."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
