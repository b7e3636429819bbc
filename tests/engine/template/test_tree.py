"""The tree of a project: what the manifest says is so, for every choice of subjects."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from functools import cache
from itertools import combinations
from pathlib import PurePosixPath

import pytest

from rag_factory.template.creation import make_plan
from rag_factory.template.imports import sort_imports
from rag_factory.template.manifest import read_manifest
from rag_factory.template.parts import has_marker
from rag_factory.template.tree import REVISIONS, build_tree
from tests.conftest import ROOT

MANIFEST = read_manifest()
SUBJECTS = sorted(MANIFEST.subjects)
CHOICES = [",".join(each) for number in range(4) for each in combinations(SUBJECTS, number)]
every_choice = pytest.mark.parametrize("without", CHOICES)
# What would be left of a subject, in the code, the revisions and the documentation of a project without it.
TRACES = {
    "audit": "audit",
    "chat": r"conversation|scratchpad|user_memor|UserMemory|\bchat\b",
    "tenancy": "tenant|tenancy",
}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]


@cache
def tree(without: str = "", name: str = "my-app") -> dict[str, str]:
    return {path: content.decode() for path, content in build_tree(make_plan(name, without)).items()}


def python_files(without: str, name: str = "my-app") -> dict[str, str]:
    return {path: text for path, text in tree(without, name).items() if path.endswith(".py")}


def test_every_file_is_the_projects_or_the_engines() -> None:
    for path in tracked():
        MANIFEST.place(path)  # raises LookupError, and says what to do


def test_manifest_names_nothing_twice_and_nothing_that_is_not_there() -> None:
    paths = [*MANIFEST.project, *MANIFEST.engine]
    assert len(paths) == len(set(paths))
    files = set(tracked())
    folders = {f"{parent}/" for path in files for parent in PurePosixPath(path).parents}
    for path in [*paths, *(path for of_one in MANIFEST.subjects.values() for path in of_one)]:
        assert path in files | folders, path
    for path in [path for of_one in MANIFEST.subjects.values() for path in of_one]:
        assert MANIFEST.place(path), f"{path} is the engine's: it needs no subject"
    for change in MANIFEST.changes:
        assert MANIFEST.place(change.file), change.file


def test_two_files_never_have_one_place() -> None:
    places = [place for path in tracked() if (place := MANIFEST.place(path))]
    assert len(places) == len(set(places))


def test_imports_are_sorted_as_they_are_here() -> None:
    for path in tracked():
        text = (ROOT / path).read_text(encoding="utf-8") if path.endswith(".py") else ""
        assert sort_imports(text, {"rag_factory", "tests", "benchmarks", "docs"}) == text, path


@every_choice
def test_no_marker_is_left(without: str) -> None:
    for path, text in tree(without).items():
        assert not has_marker(text), path


@every_choice
def test_every_import_leads_somewhere(without: str) -> None:
    files = tree(without)
    for path, text in python_files(without).items():
        for name in _imported(ast.parse(text)):
            top, _, rest = name.partition(".")
            place = name.replace(".", "/")
            if top in {"my_app", "tests"}:
                assert any(
                    f"{each}{end}" in files for each in (place,) for end in (".py", "/__init__.py")
                ) or (top == "tests" and not rest), f"{path}: {name}"
            if top == "rag_factory":
                module = f"{place}.py" if (ROOT / f"{place}.py").is_file() else f"{place}/__init__.py"
                assert (ROOT / module).is_file(), f"{path}: {name}"
                assert MANIFEST.place(module) is None, f"{path}: {name} is the project's, not the engine's"


@every_choice
def test_revisions_are_one_chain(without: str) -> None:
    before = None
    revisions = [path for path in tree(without) if path.startswith(REVISIONS)]
    assert len(revisions) > 10
    for path in revisions:
        values = {
            ast.unparse(node.targets[0]): ast.literal_eval(node.value)
            for node in ast.parse(tree(without)[path]).body
            if isinstance(node, ast.Assign) and "revision" in ast.unparse(node.targets[0])
        }
        assert values["down_revision"] == before, path
        before = values["revision"]
        assert PurePosixPath(path).name.startswith(f"{before}_")
        assert f"\nRevision ID: {before}\nRevises:" in tree(without)[path]
    assert tree(without)["migrations/HEAD"] == f"{before}\n"


@every_choice
def test_nothing_is_said_of_what_is_left_out(without: str) -> None:
    for subject in filter(None, without.split(",")):
        for path, text in tree(without).items():
            if path != "pyproject.toml" and not path.startswith("tests/"):
                assert not re.search(TRACES[subject], text, re.IGNORECASE), path


@every_choice
def test_every_link_leads_to_a_file(without: str) -> None:
    for path, text in tree(without).items():
        if path.endswith(".md"):
            for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
                target = os.path.normpath(PurePosixPath(path).parent / link)
                assert target in tree(without), f"{path}: {link}"


def test_every_subject_is_there_unless_it_is_left_out() -> None:
    whole = "\n".join(text for path, text in tree().items() if not path.startswith("tests/"))
    for subject in SUBJECTS:
        assert re.search(TRACES[subject], whole), subject
    assert set(TRACES) == set(SUBJECTS)


@pytest.mark.parametrize("name", ["a", "zoo-keeper", "a-name-as-long-as-it-may-be-30"])
def test_name_is_given_everywhere(name: str) -> None:
    package = name.replace("-", "_")
    files = tree(name=name)
    assert f"{package}/database/models/__init__.py" in files
    assert f'name = "{name}"' in files["pyproject.toml"]
    for path, text in files.items():
        if package != "a":
            assert not re.search(r"\bmy[-_]app\b", text), path
        if path.endswith(".py"):
            ast.parse(text)
            assert max(map(len, text.splitlines()), default=0) <= 110, path
            assert sort_imports(text, {package, "tests"}) == text, path


def test_engine_keeps_its_name_only() -> None:
    for path, text in tree().items():
        for found in re.finditer(r"rag_factory[./](?P<rest>[\w./]+)", text):
            place = found["rest"].replace(".", "/").split("/")
            if place[0] in {"database", "services", "migrate", "tasks", "testing", "server", "errors"}:
                module = "/".join(["rag_factory", *place[:2]]).removesuffix("/py")
                known = MANIFEST.place(module + ("/" if (ROOT / module).is_dir() else ".py"))
                assert known is None, f"{path}: {found[0]}"


def _imported(tree: ast.AST) -> set[str]:
    """The modules that a file imports; of `from package import module`, the module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in {"my_app.database", "rag_factory.database"}:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found
