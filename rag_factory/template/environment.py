"""Change an env.py so that it works on the database that the engine names, and otherwise as before.

The engine gives its connection in `config.attributes`, and the address as `sqlalchemy.url`. An env.py of
Alembic's templates takes the address from there: nothing has to be changed. One that puts an address of its
own in its place does so, from now on, only where nobody gives one: with plain `alembic` commands.
"""

from __future__ import annotations

import ast

ATTRIBUTE = "config.attributes"
HINT = "let it connect to config.attributes['connection'], or to sqlalchemy.url, when the first is given."
_MAKERS = {"create_engine", "create_async_engine"}
_READERS = {"engine_from_config", "async_engine_from_config"}


def change_environment(text: str) -> tuple[str, str | None]:
    """The text of an env.py with the change, the same when none is needed; and what is left to do by hand."""
    if "run_environment" in text or f'{ATTRIBUTE}["connection"]' in text:
        return text, None
    tree = ast.parse(text)
    called = {_name(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if not called & (_MAKERS | _READERS):
        return text, HINT
    if "config" not in {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}:
        return text, f"it has no `config = context.config`; {HINT}"
    while changed := _change_one(text):
        text = changed
    return text, None


def _change_one(text: str) -> str | None:
    """Change the first place that puts an address of its own; None: there is no more."""
    tree = ast.parse(text)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.If, ast.IfExp)) and ATTRIBUTE in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.stmt) and _sets_address(node):
            return _put_under_condition(text, node)
        if isinstance(node, ast.Call) and _name(node) in _MAKERS:
            address = node.args[0] if node.args else _keyword(node, "url")
            if address is not None and ATTRIBUTE not in ast.unparse(address):
                return _prefer_given(text, address)
    return None


def _sets_address(node: ast.stmt) -> bool:
    """Whether a statement is `config.set_main_option("sqlalchemy.url", …)`, or sets that key of a section."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        call = node.value
        first = call.args[0] if call.args else None
        return _name(call) == "set_main_option" and _is_address_key(first)
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Subscript) and _is_address_key(target.slice) for target in node.targets
    )


def _is_address_key(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value == "sqlalchemy.url"


def _put_under_condition(text: str, node: ast.stmt) -> str:
    lines = text.split("\n")
    indent = " " * node.col_offset
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    body = [f"    {line}" if line.strip() else line for line in lines[first:last]]
    lines[first:last] = [f'{indent}if "connection" not in {ATTRIBUTE}:', *body]
    return "\n".join(lines)


def _prefer_given(text: str, address: ast.expr) -> str:
    begin = offset(text, address.lineno, address.col_offset)
    end = offset(text, address.end_lineno or address.lineno, address.end_col_offset or 0)
    preferred = f'config.get_main_option("sqlalchemy.url") if "connection" in {ATTRIBUTE} else '
    return text[:begin] + preferred + text[begin:end] + text[end:]


def offset(text: str, line: int, column: int) -> int:
    """Where a place of the syntax tree is in a text; its columns count bytes."""
    lines = text.split("\n")
    return sum(len(each) + 1 for each in lines[: line - 1]) + len(lines[line - 1].encode()[:column].decode())


def _name(call: ast.Call) -> str:
    """What is called, without what it is taken from."""
    return ast.unparse(call.func).rpartition(".")[2]


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == name), None)
