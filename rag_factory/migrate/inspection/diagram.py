"""Pictures as Mermaid text: the models' tables and the revisions; and the file that keeps one."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import NotReadyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sqlalchemy import ForeignKeyConstraint, MetaData
    from sqlalchemy.types import TypeEngine

    from rag_factory.migrate.history import History
    from rag_factory.migrate.project import Project

BEGIN = "<!-- db.diagram begins: written by invoke db.diagram, changed by it alone -->"
END = "<!-- db.diagram ends -->"
_NEW_FILE = (
    f"# The schema\n\nDrawn from the models. Up to date: `invoke db.diagram --check`.\n\n{BEGIN}\n{END}\n"
)
# What stands between words in a name of Mermaid's.
_NOT_IN_A_NAME = re.compile(r"[^\w]+")


def draw_tables(project: Project) -> str:
    """Draw the tables of env.py's target_metadata and their foreign keys. Needs no database.

    Raises NotReadyError: env.py gives no metadata, or paracelsus is not installed.
    """
    try:
        from paracelsus.transformers.mermaid import Mermaid  # type: ignore[import-untyped] # has no types
    except ImportError as error:
        raise NotReadyError(
            "The diagram is drawn by paracelsus, which is not installed.",
            fix="Install the extra: pip install 'rag-factory[diagram]'",
        ) from error
    drawn = str(Mermaid(_plain_copy(read_metadata(project)), "preserve-order"))
    return "\n".join(line.rstrip() for line in drawn.splitlines() if line.strip())


def draw_revisions(history: History) -> str:
    """Draw the revisions, each after what it stands on."""
    number = {id_: f"r{place}" for place, id_ in enumerate(history.revisions)}
    lines = ["flowchart TB"]
    for revision in history.revisions.values():
        title = revision.message.replace('"', "'")
        lines.append(f'  {number[revision.id]}["{revision.id} {title}"]')
    for revision in history.revisions.values():
        lines += [f"  {number[parent]} --> {number[revision.id]}" for parent in revision.parents]
        # A dependency may be given by a label.
        named = [history.labels.get(name, name) for name in revision.depends_on]
        lines += [f"  {number[name]} -.-> {number[revision.id]}" for name in named if name in number]
    return "\n".join(lines)


def place_diagram(path: Path, diagram: str) -> tuple[str, str]:
    """The text of the file now, empty where there is none, and as it has to be, with the diagram.

    The diagram stands between the lines BEGIN and END; all else in the file is its owner's.
    Raises UsageError: the file is there, but lacks these lines.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    head, begin, rest = (before or _NEW_FILE).partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UsageError(
            f"{path} has no place for the diagram: a line that says where it begins, and one where it ends.",
            fix=f"Add them where it shall stand:\n{BEGIN}\n{END}",
        )
    return before, f"{head}{BEGIN}\n\n```mermaid\n{diagram}\n```\n\n{END}{tail}"


def read_metadata(project: Project) -> list[MetaData]:
    """Run env.py offline and take the target_metadata that it configures: one, or several.

    Raises NotReadyError: it gives none.
    """
    # Alembic is imported here: the file's texts are checked without it.
    from alembic.runtime.environment import EnvironmentContext
    from sqlalchemy import MetaData

    from rag_factory.migrate.environment import explained, load_scripts

    nominal = DatabaseUrl(host="localhost", database="offline")
    config = project.alembic_config(nominal)
    config.output_buffer = io.StringIO()
    scripts = load_scripts(config)
    found: list[Any] = []

    def look(_: Any, context: Any) -> tuple[()]:
        found.append(context.opts.get("target_metadata"))
        return ()

    with (
        explained("Reading the models through env.py", nominal),
        EnvironmentContext(config, scripts, fn=look, as_sql=True, starting_rev="base"),
    ):
        scripts.run_env()
    given = found[0] if found else None
    metadata = [given] if isinstance(given, MetaData) else list(given or ())
    if not any(one.tables for one in metadata):
        raise NotReadyError(
            "env.py configures no target_metadata with tables.",
            fix="Give it the metadata of the models, as autogenerate needs it too.",
        )
    return metadata


def _plain_copy(metadata: Iterable[MetaData]) -> MetaData:
    """Copy the tables so that the drawing has PostgreSQL's types, and one line for each foreign key.

    paracelsus draws a line for each *column* of a key, writes types as a database without uuid would, and
    parts names at spaces and dots.
    """
    from sqlalchemy import Column, ForeignKey, MetaData, Table, UniqueConstraint

    copy = MetaData()
    written = _written_type()
    tables = {table.fullname: table for one in metadata for table in one.tables.values()}
    for fullname, table in sorted(tables.items()):
        links = sorted({link for key in table.foreign_key_constraints if (link := _link(key))})
        columns = [
            Column(
                _word(column.name),
                written(_type_text(column.type)),
                *(ForeignKey(goal) for linking, goal in links if linking == column.name),
                primary_key=column.primary_key,
                nullable=column.nullable,
                comment=column.comment and column.comment.replace('"', "'"),
            )
            for column in table.columns
        ]
        unique = [
            UniqueConstraint(*(_word(column.name) for column in constraint.columns))
            for constraint in table.constraints
            if isinstance(constraint, UniqueConstraint)
        ]
        Table(_word(fullname), copy, *columns, *unique)
    return copy


def _link(key: ForeignKeyConstraint) -> tuple[str, str] | None:
    """The column that says most of a key, and `table.column` where it leads; None: to no table of the models.

    That is the one to a primary key of one column; else the last, since a tenant's id tends to come first.
    """
    from sqlalchemy.exc import NoReferenceError

    try:
        pairs = [(element.parent, element.column) for element in key.elements]
    except NoReferenceError:
        return None
    alone = [pair for pair in pairs if pair[1].primary_key and len(pair[1].table.primary_key.columns) == 1]
    column, goal = (alone or pairs)[-1]
    return column.name, f"{_word(goal.table.fullname)}.{_word(goal.name)}"


def _written_type() -> Callable[[str], TypeEngine[Any]]:
    """A type that is written as it is told."""
    from sqlalchemy.types import UserDefinedType

    class Written(UserDefinedType[Any]):
        def __init__(self, text: str) -> None:
            self.text = text

        def get_col_spec(self, **_: Any) -> str:
            return self.text

    return Written


def _type_text(type_: TypeEngine[Any]) -> str:
    """A type as PostgreSQL writes it, in one word."""
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.exc import CompileError

    try:
        text = type_.compile(dialect=postgresql.dialect()).lower()  # type: ignore[no-untyped-call] # SQLAlchemy's
    except CompileError:
        return "unknown"
    text = text.replace(" without time zone", "").replace(" with time zone", "tz")
    return re.sub(r"[^A-Za-z0-9_()\[\]]+", "_", text)


def _word(name: str) -> str:
    """A name as one word of Mermaid's."""
    return re.sub(r"[^A-Za-z0-9_]+|^(?=[0-9])", "_", name)
