"""Tables in which other tools keep which of their migrations are applied."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rag_factory.migrate.project import Project
    from rag_factory.migrate.schema import SchemaItem

# By the table's name: whose it is, and how to stop the tool for good.
_TOOLS = {
    "schema_migrations": ("Rails, golang-migrate or dbmate", "take its step out of the deployment"),
    "ar_internal_metadata": ("Rails", "take `rails db:migrate` out of the deployment"),
    "flyway_schema_history": ("Flyway", "take `flyway migrate` out of the deployment"),
    "django_migrations": ("Django", "set managed = False in its models, or keep it on tables of its own"),
    "databasechangelog": ("Liquibase", "take `liquibase update` out of the deployment"),
    "databasechangeloglock": ("Liquibase", "take `liquibase update` out of the deployment"),
    "goose_db_version": ("goose", "take `goose up` out of the deployment"),
    "_sqlx_migrations": ("sqlx", "take `sqlx migrate run` and sqlx::migrate! out"),
    "_prisma_migrations": ("Prisma", "take `prisma migrate deploy` out; `prisma db pull` reads the schema"),
    "__drizzle_migrations": (
        "Drizzle",
        "take `drizzle-kit migrate` out; `drizzle-kit pull` reads the schema",
    ),
    "knex_migrations": ("Knex", "take `knex migrate:latest` out of the deployment"),
    "knex_migrations_lock": ("Knex", "take `knex migrate:latest` out of the deployment"),
    "sequelizemeta": ("Sequelize", "take `sequelize db:migrate` out of the deployment"),
    "atlas_schema_revisions": ("Atlas", "take `atlas migrate apply` out of the deployment"),
    "pgmigrations": ("node-pg-migrate", "take `node-pg-migrate up` out of the deployment"),
    "_yoyo_migration": ("yoyo", "take `yoyo apply` out of the deployment"),
    "schema_version": ("Flyway or pgm", "take its step out of the deployment"),
}


@dataclass(frozen=True)
class ForeignTable:
    """A table of another tool. name: qualified. advice: how to leave that tool."""

    name: str
    tool: str
    advice: str


def find_foreign(items: Iterable[SchemaItem], project: Project) -> list[ForeignTable]:
    """Find the tables of other migration tools, a second one of Alembic's among them."""
    items = list(items)
    own = version_tables(items, project)
    columns: dict[str, list[str]] = {}
    for item in items:
        if item.kind == "column":
            columns.setdefault(item.of, []).append(f"{last_name(item.name)} {item.definition}")
    found = []
    for item in items:
        if item.kind != "table" or item.name in own:
            continue
        known = _TOOLS.get(last_name(item.name).lower())
        if known:
            found.append(ForeignTable(item.name, *known))
        elif [text.partition(" not null")[0] for text in columns.get(item.name, [])] == [_ALEMBIC]:
            found.append(
                ForeignTable(item.name, "another Alembic project", "leave its tables to that project")
            )
    return found


_ALEMBIC = "version_num character varying(32)"


def version_tables(items: Iterable[SchemaItem], project: Project) -> set[str]:
    """The qualified names that the project's own version table has here: it may be in any search_path."""
    *schema, table = project.version_table
    return {
        item.name
        for item in items
        if item.kind == "table"
        and last_name(item.name) == table
        and (not schema or item.name == f"{schema[0]}.{table}")
    }


def last_name(name: str) -> str:
    """The last part of a qualified name, without quotes."""
    found = re.search(r'("(?:[^"]|"")*"|[^."]*)$', name)
    part = found[1] if found else name
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
