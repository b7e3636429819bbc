"""What helps to find a task: `invoke` alone, and completion in a shell."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import CommandLine

INVOKE = Path(sys.executable).with_name("invoke")


def task_names(cli: CommandLine) -> set[str]:
    listed = json.loads(cli.invoke("--list", "--list-format=json").stdout)
    return {f"{area['name']}.{task['name']}" for area in listed["collections"] for task in area["tasks"]}


def test_invoke_alone_shows_each_task_once_under_its_area(cli: CommandLine) -> None:
    done = cli.invoke()
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split(None, 1) for line in done.stdout.splitlines() if line.startswith("  ")]
    assert {name for name, _ in rows} == task_names(cli)
    assert len(rows) == len(task_names(cli))
    titles = [line for line in done.stdout.splitlines() if line and not line.startswith("  ")]
    assert "The database as a whole" in titles
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_each_shell_asks_for_tasks_and_options(
    cli: CommandLine, tmp_path: Path, shell: str
) -> None:
    """The script's own question to invoke, with the words so far put in as that shell does."""
    script = cli.invoke("--print-completion-script", shell).stdout
    words = {"bash": "${COMP_WORDS[*]}", "zsh": "${words}", "fish": "(commandline --tokenize)"}[shell]
    assert f"--complete -- {words}" in script
    tasks = cli.invoke("--complete", "--", "invoke", "db.rollb").stdout.split()
    assert {"db.rollback", "env.check"} <= set(tasks)
    assert "--steps" in cli.invoke("--complete", "--", "invoke", "db.rollback", "--").stdout.split()
    if program := shutil.which(shell):
        # That it can be read, where there is that shell.
        path = tmp_path / f"completion.{shell}"
        path.write_text(script)
        done = cli.run(program, "-n", str(path))
        assert (done.returncode, done.stderr) == (0, "")


def test_completion_in_bash_knows_tasks_and_options(cli: CommandLine, tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(cli.invoke("--print-completion-script", "bash").stdout)
    bash = shutil.which("bash")
    assert bash, "these tests call for bash"

    def complete(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in words)
        # As an interactive shell calls it: the words so far, and the one being typed as the second argument.
        command = (
            f"source {script}; COMP_WORDS=({typed}); _complete_invoke invoke '{words[-1]}'; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        path = f"{INVOKE.parent}{os.pathsep}{os.environ['PATH']}"
        done = cli.run(bash, "-c", command, PATH=path)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert complete("invoke", "db.rollb") == ["db.rollback"]
    assert "--steps" in complete("invoke", "db.rollback", "--")


def test_task_runs_as_often_as_it_is_named(cli: CommandLine) -> None:
    assert cli.invoke("db.heads", "db.heads").stdout == "002\n002\n"
