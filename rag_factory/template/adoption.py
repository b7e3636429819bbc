"""Add the engine to an Alembic project that is there: the few lines it needs, and nothing else."""

from __future__ import annotations

import ast
import difflib
import json
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from rag_factory.errors import NotReadyError
from rag_factory.migrate.project import PYPROJECT, Project
from rag_factory.template.environment import change_environment, offset
from rag_factory.template.tree import DISTRIBUTION_OF_ENGINE, TEMPLATE_VERSION

PLUGIN = "rag_factory.testing.plugin"
TASKS = '''"""The tasks, see them: invoke --list."""

from pathlib import Path

from rag_factory.tasks import build_namespace

namespace = build_namespace(Path(__file__).parent)
'''
DEPENDENCIES = ("rag-factory[autogenerate]", "rag-factory[embedded,testing]")


@dataclass
class Adoption:
    """What is to be done to a project.

    files: what files are to hold, by their path, of those that change. notes: what is left to its people.
    """

    root: Path
    files: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def before(self, path: Path) -> str:
        """What a file holds now; nothing when it isn't there."""
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def put(self, path: Path, text: str) -> None:
        """Have a file hold this."""
        if text != self.before(path):
            self.files[path] = text

    def differences(self) -> list[str]:
        """What is to be done to each file, as a unified diff."""
        found = []
        for path, text in self.files.items():
            name = path.relative_to(self.root).as_posix()
            lines = difflib.unified_diff(
                self.before(path).splitlines(keepends=True), text.splitlines(keepends=True), name, name
            )
            found.append("".join(lines))
        return found

    def write(self) -> None:
        """Write the files."""
        for path, text in self.files.items():
            path.write_text(text, encoding="utf-8")


def plan_adoption(root: Path) -> Adoption:
    """Find out what a project lacks. To ask again when it is written finds nothing.

    Raises NotReadyError: the folder holds no Alembic environment.
    """
    root = root.resolve()
    env = find_env(root)
    adoption = Adoption(root)
    _plan_tasks(adoption)
    _plan_conftest(adoption)
    text = adoption.before(env)
    changed, problem = change_environment(text)
    adoption.put(env, changed)
    if problem:
        adoption.notes.append(f"{env.relative_to(root)}: {problem}")
    _plan_settings(adoption, env, text)
    _note_dependencies(adoption)
    _note_ignored(adoption)
    return adoption


def find_env(root: Path) -> Path:
    """The project's env.py. Raises NotReadyError: there is none."""
    from alembic.util import CommandError

    try:
        location = Project(root).alembic_config(None).get_alembic_option("script_location")
    except CommandError as error:
        raise NotReadyError(f"{root}: {error}.", fix="Correct alembic.ini.") from error
    if not location:
        raise NotReadyError(f"{root} has no script_location for Alembic.", fix="Set it in alembic.ini.")
    if ":" in location and not Path(location).is_absolute():
        package, _, rest = location.partition(":")
        candidates = [folder / package.replace(".", "/") / rest for folder in (root, root / "src")]
    else:
        candidates = [root / location]
    for folder in candidates:
        if (folder / "env.py").is_file():
            return folder / "env.py"
    raise NotReadyError(f"{candidates[0] / 'env.py'} is not there.", fix="Correct script_location.")


def _plan_tasks(adoption: Adoption) -> None:
    path = adoption.root / "tasks.py"
    text = adoption.before(path)
    if not path.is_file():
        adoption.put(path, TASKS)
    elif "build_namespace" not in text:
        adoption.notes.append(
            "tasks.py is there, and stays as it is. Add to it:\n"
            "    from rag_factory.tasks import build_namespace\n"
            "    namespace = build_namespace(Path(__file__).parent)\n"
            "and your own tasks to that: namespace.add_task(…)"
        )


def _plan_conftest(adoption: Adoption) -> None:
    """Let pytest load the plug-in: by the conftest.py that it reads first."""
    places = [adoption.root / "conftest.py", adoption.root / "tests" / "conftest.py"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        path = places[1] if places[1].parent.is_dir() else places[0]
    text = adoption.before(path)
    if f'"{PLUGIN}"' in text or f"'{PLUGIN}'" in text:
        return
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytest_plugins":
            if isinstance(node.value, (ast.List, ast.Tuple)):
                start = offset(text, node.value.lineno, node.value.col_offset) + 1
                rest = ", " if node.value.elts else ""
                adoption.put(path, f'{text[:start]}"{PLUGIN}"{rest}{text[start:]}')
            else:
                adoption.notes.append(f'{path.name}: add "{PLUGIN}" to pytest_plugins.')
            return
    line = f'pytest_plugins = ["{PLUGIN}"]\n'
    last = max((node.end_lineno or 0 for node in tree.body if _is_beginning(node)), default=0)
    lines = text.splitlines(keepends=True)
    before, after = "".join(lines[:last]), "".join(lines[last:])
    if before and not before.endswith("\n"):
        before += "\n"
    adoption.put(path, before + ("\n" if before else "") + line + after)


def _plan_settings(adoption: Adoption, env: Path, env_text: str) -> None:
    """Write down in pyproject.toml what the engine can't see."""
    path = adoption.root / PYPROJECT
    text = adoption.before(path)
    if re.search(r"^\[tool\.rag_factory\]", text, re.MULTILINE):
        return
    lines = ["[tool.rag_factory]", f'{TEMPLATE_VERSION} = "{version(DISTRIBUTION_OF_ENGINE)}"']
    scripts = "\n".join(file.read_text(encoding="utf-8") for file in sorted(env.parent.rglob("*.py")))
    uses_pgvector = "pgvector" in text + scripts
    extensions = ["vector"] if uses_pgvector else []
    lines.append(f"extensions = {json.dumps(extensions)}  # what db.create makes in a database")
    found = re.findall(r"\b(version_table|version_table_schema)=[\"'](\w+)[\"']", env_text)
    lines += [f'{option} = "{value}"' for option, value in dict(found).items()]
    adoption.put(path, (text.rstrip() + "\n\n" if text.strip() else "") + "\n".join(lines) + "\n")


def _note_dependencies(adoption: Adoption) -> None:
    if DISTRIBUTION_OF_ENGINE not in adoption.before(adoption.root / PYPROJECT):
        engine, development = DEPENDENCIES
        adoption.notes.append(
            "The engine is no dependency yet. With uv:\n"
            f"    uv add '{engine}' && uv add --dev '{development}'"
        )


def _note_ignored(adoption: Adoption) -> None:
    path = adoption.root / ".gitignore"
    if path.is_file() and ".rag_factory" not in adoption.before(path):
        adoption.notes.append(".gitignore: add .rag_factory/, where the embedded server keeps its data.")


def _is_beginning(node: ast.stmt) -> bool:
    """Whether a statement belongs before the first one that does something."""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, (ast.Import, ast.ImportFrom))
