"""Write the reference from the code: uv run python -m docs.generate. A test sees that it was done."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from rag_factory import errors
from rag_factory.database.config import URLS, DatabaseConfig
from rag_factory.database.sources import OLD_NAMES
from rag_factory.migrate.history import History
from rag_factory.migrate.inspection.diagram import draw_revisions
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from invoke.collection import Collection
    from invoke.tasks import Task

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MADE = "<!-- Written from the code by python -m docs.generate: change it there. -->\n"
CODES = {
    0: "done",
    1: "failed",
    2: "usage; also a revision, step or file that isn't there",
    3: "the environment is not ready: settings, server, database, extension",
    4: "refused: protected, or not confirmed",
    5: "behind: revisions are pending",
    6: "drift: two schemas differ",
    7: "history broken: several heads, a revision this checkout lacks, an edited revision",
    8: "a lock was not obtained; try later",
    9: "the backup failed, nothing was changed",
    10: "left-overs: an INVALID index, a half-applied revision",
    130: "interrupted by Ctrl-C; what the task says then is how things stand",
    143: "likewise, by SIGTERM",
}


def generate() -> dict[Path, str]:
    """Every page of the reference, by its path."""
    import tasks

    pages = {
        "tasks": tasks_page(tasks.namespace),
        "sessions": sessions_page(ROOT / "noxfile.py"),
        "settings": settings_page(),
        "errors": errors_page(),
        "revisions": revisions_page(),
    }
    return {DOCS / "reference" / f"{name}.md": f"{MADE}\n{text}" for name, text in pages.items()}


def tasks_page(namespace: Collection) -> str:
    """Each task with its whole docstring and its options."""
    lines = [
        "# Tasks",
        "",
        "`invoke TASK` runs one, from any folder of the project; `invoke` alone lists them.",
    ]
    lines += ["Every task has `--debug` as well, which shows the traceback of an error."]
    for area in sorted(namespace.collections):
        lines += ["", f"## {area}"]
        for task in sorted(namespace.collections[area].tasks.values(), key=lambda task: task.name):
            lines += ["", f"### {area}.{task.name}", "", inspect.cleandoc(task.__doc__ or ""), ""]
            lines += _options(task)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _options(task: Task[Any]) -> Iterator[str]:
    options = [argument for argument in task.get_arguments() if argument.name != "debug"]
    if options:
        yield from ("| option | |", "| --- | --- |")
    for argument in options:
        option = str(argument.name).replace("_", "-")
        value = f" {option.upper()}" if argument.takes_value else ""
        text = f"{argument.help or ''}{' Required.' if argument.positional else ''}".strip()
        yield f"| `--{option}{value}` | {text} |"


def sessions_page(noxfile: Path) -> str:
    """Each session of the noxfile with its docstring."""
    lines = ["# Sessions", "", "`uv run nox -s SESSION` runs one, in an environment of its own.", ""]
    lines += ["| session | |", "| --- | --- |"]
    for node in ast.parse(noxfile.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and any(
            "session" in ast.unparse(d) for d in node.decorator_list
        ):
            lines.append(f"| `{node.name}` | {' '.join((ast.get_docstring(node) or '').split())} |")
    lines += ["", "`tests-3.11` and so on run the tests on that Python.", ""]
    return "\n".join(lines)


def settings_page() -> str:
    """Each variable, its default and meaning."""
    lines = ["# Settings", ""]
    lines += ["Set them in the environment, or in `.env` at the root of the project; the environment wins."]
    lines += [
        "Tests lay `tests/.env.test` over `.env`. `invoke env.show` shows each, masked, and where it came"
    ]
    lines += ["from.", ""]
    lines += ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in DatabaseConfig.model_fields.items():
        default = field.default
        secret = name.upper() in URLS or default is None or isinstance(default, SecretStr)
        shown = "" if secret else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        lines.append(f"| `{name.upper()}` | {shown} | {field.description} |")
    lines += ["", "Old names are still read, with a warning that says the new one:", ""]
    lines += [f"- `{old}` is `{new}` now" for old, new in OLD_NAMES.items()]
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """The exit codes, and each error with its code."""
    lines = ["# Errors and exit codes", "", "Every task ends with one of these.", ""]
    lines += ["| code | meaning |", "| ---: | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in CODES.items()]
    lines += [
        "",
        "From code, the engine raises these, of `rag_factory.errors`; each carries `what` happened",
        "",
    ]
    lines[-2] += " and the `fix`."
    lines += ["| error | code | |", "| --- | ---: | --- |"]
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.RagFactoryError):
            first = (kind.__doc__ or "").strip().partition("\n\n")[0]
            lines.append(f"| `{name}` | {kind.exit_code} | {' '.join(first.split())} |")
    return "\n".join(lines) + "\n"


def revisions_page() -> str:
    """The revisions that ship, each after what it stands on."""
    history = History.read(Project(ROOT))
    lines = ["# The revisions", ""]
    lines += ["What `invoke db.migrate` applies, from top to bottom; what they come to is [the"]
    lines += ["schema](../database/SCHEMA.md). A picture of yours: `invoke db.diagram --revisions`.", ""]
    lines += ["```mermaid", draw_revisions(history).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all pages."""
    for path, text in generate().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
