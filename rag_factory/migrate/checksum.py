"""Tell whether a revision file was edited: the checksum of what it does, however it is written."""

from __future__ import annotations

import ast
import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def file_checksum(path: Path) -> str:
    """SHA-256 of the file as it is: the cheap first look, equal for a file that nobody touched."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of the syntax tree without comments, docstrings and formatting; of the bytes of no Python.

    It is the same in all versions of Python: fields that a version adds are empty where they aren't used.
    """
    source = path.read_bytes()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    for word in _words(tree):
        digest.update(word.encode(errors="backslashreplace"))
    return digest.hexdigest()


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for name in value._fields:
            field: Any = getattr(value, name, None)
            if name == "body" and isinstance(value, _WITH_DOCSTRING) and _is_docstring(field):
                field = field[1:]
            if field not in (None, [], "") and name not in {"ctx", "kind", "type_comment", "type_ignores"}:
                yield f" {name}="
                yield from _words(field)
            elif isinstance(value, ast.Constant) and name == "value":
                yield f" {name}={field!r}"
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            yield from _words(item)
            yield ","
        yield "]"
    else:
        yield repr(value)


_WITH_DOCSTRING = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _is_docstring(body: list[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
