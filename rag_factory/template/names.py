"""What a project may be called."""

from __future__ import annotations

import keyword
import re
import sys

from rag_factory.errors import UsageError

LONGEST = 30
# Packages that a project has, or imports: one of its own would hide them.
# fmt: off
_TAKEN = frozenset([
    "alembic", "benchmarks", "docs", "hypothesis", "invoke", "migrations", "mypy", "nox", "noxfile",
    "numpy", "openai", "pgvector", "psycopg", "pydantic", "pydantic_settings", "pytest",
    "rag_factory", "rich", "ruff", "sqlalchemy", "tasks", "tests", "uv",
])
# fmt: on


def package_of(name: str) -> str:
    """The Python package of a project of this name: my-app is my_app.

    Raises UsageError: it can't be called so; with all that is wrong.
    """
    package = name.replace("-", "_")
    wrong = []
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        wrong.append("has to be of lower-case letters and digits in words joined by - or _, a letter first")
    if len(name) > LONGEST:
        wrong.append(f"has {len(name)} characters, {LONGEST} at most are good for a package")
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        wrong.append("is a keyword of Python")
    if package in sys.stdlib_module_names:
        wrong.append("is a module of Python's own")
    if package in _TAKEN:
        wrong.append("is a package that the project itself has or uses")
    if wrong:
        raise UsageError(f"The name {name!r} {'; and it '.join(wrong)}.", fix="Take one like my-app.")
    return package
