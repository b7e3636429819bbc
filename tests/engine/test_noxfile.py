"""The sessions: what each is for, and that none is called what a task is called."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

from rag_factory.tasks import build_namespace
from tests.conftest import ROOT


@cache
def sessions() -> list[dict[str, Any]]:
    listed = nox("--list", "--json", "-k", "not none")  # without -k only what a bare nox would run
    assert listed.returncode == 0, listed.stderr
    return list(json.loads(listed.stdout))


def session_names() -> set[str]:
    return {session["session"] for session in sessions()}


def nox(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nox", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_session_says_what_it_does() -> None:
    for session in sessions():
        assert session["description"], session
        assert session["description"].endswith("."), session


def test_no_session_is_called_what_a_task_is_called() -> None:
    tasks = set(build_namespace(ROOT).task_names)
    assert tasks
    # db.lint and the session lint judge the revisions by one function: the same word for the same thing.
    names = {task.rpartition(".")[2] for task in tasks - {"db.lint"}}
    assert not session_names() & (tasks | names)


def test_supported_pythons_have_a_session_each_but_run_only_when_named() -> None:
    by_python = {session["python"]: session["session"] for session in sessions() if session["python"]}
    assert by_python == {f"3.{minor}": f"tests-3.{minor}" for minor in range(11, 15)}


def test_python_that_is_asked_for_and_missing_is_a_failure() -> None:
    done = nox("-s", "tests", "-P", "3.99", "--download-python", "never")
    assert done.returncode == 1
    assert "Python interpreter 3.99 not found" in done.stderr


def test_python_without_a_session_is_a_failure() -> None:
    assert nox("-s", "tests", "--python", "3.99").returncode == 3
