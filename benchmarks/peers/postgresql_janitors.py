"""Worker databases by pytest-postgresql: its session fixture's template, and one test's database from it.

Argument: the folder of alembic.ini.
"""

from __future__ import annotations

from pytest_postgresql.janitor import DatabaseJanitor  # type: ignore[import-not-found]

from benchmarks.peers.alembic_upgrade import upgrade
from benchmarks.peers.member import serve

janitors: list[DatabaseJanitor] = []


def create(host: str, port: int, user: str, name: str) -> None:
    """Do what the fixtures `postgresql_noproc(load=[upgrade])` and `postgresql` do, in this order."""
    template = DatabaseJanitor(host=host, port=port, user=user, dbname=f"{name}_tmpl", as_template=True)
    janitors.append(template)
    template.init()
    template.load(upgrade)
    database = DatabaseJanitor(host=host, port=port, user=user, dbname=name, template_dbname=template.dbname)
    janitors.append(database)
    database.init()


def end() -> None:
    """Drop both."""
    while janitors:
        janitors.pop().drop()


if __name__ == "__main__":
    serve({"create": create, "end": end})
