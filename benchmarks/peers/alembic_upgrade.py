"""A database for each worker, migrated there with Alembic. Argument: the folder of alembic.ini."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import URL

from benchmarks.peers.member import serve


def create(host: str, port: int, user: str, name: str) -> None:
    """Create the database and migrate it."""
    with psycopg.connect(host=host, port=port, user=user, dbname="postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
    upgrade(host, port, user, name)


def upgrade(host: str, port: int, user: str, dbname: str, **_: object) -> None:
    """Migrate a database; also what pytest-postgresql calls to load its template."""
    # In the query, as the host is a folder.
    query = {"host": host, "port": str(port)}
    url = URL.create("postgresql+psycopg", username=user, database=dbname, query=query)
    config = Config(Path(sys.argv[1]) / "alembic.ini")
    config.set_main_option("sqlalchemy.url", url.render_as_string().replace("%", "%%"))
    command.upgrade(config, "head")


if __name__ == "__main__":
    serve({"create": create})
