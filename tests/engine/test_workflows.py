"""The workflows, held to what they promise: every job counts, nothing floats, no right is given unasked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.engine.test_noxfile import session_names

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import CommandLine

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
GREEN = "all-green"
NOX = re.compile(r'uvx nox -s (?P<session>"[^"]+"|\S+)(?: -- --shard "\$SHARD")?')
TASK = re.compile(r"uv run --no-sync invoke (?P<task>[a-z.]+)")


def read(name: str) -> dict[Any, Any]:
    return dict(yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text()))


def every(kind: str) -> list[Any]:
    """A parameter for each job or step of each workflow."""
    found = []
    for path in WORKFLOWS:
        for name, job in read(path.name)["jobs"].items():
            if kind == "job":
                found.append(pytest.param(job, id=f"{path.stem}-{name}"))
            else:
                steps = enumerate(job["steps"])
                found += [pytest.param(step, id=f"{path.stem}-{name}-{number}") for number, step in steps]
    return found


def combinations(job: dict[str, Any]) -> list[dict[str, str]]:
    """What a job's matrix makes of it: the values of each of its runs."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    included = matrix.pop("include", [])
    crossed: list[dict[str, str]] = [{}] if matrix else []
    for key, values in matrix.items():
        crossed = [{**values_before, key: value} for values_before in crossed for value in values]
    return crossed + included or [{}]


def sessions_of(job: dict[str, Any]) -> set[str]:
    """The nox sessions that a job runs."""
    found = set()
    for command in [step["run"] for step in job["steps"] if "run" in step]:
        called = NOX.fullmatch(command)
        assert called, f"this is not one nox session: {command}"
        for values in combinations(job):
            found.add(called["session"].strip('"').replace("$PYTHON", values.get("python", "")))
    return found


CI_JOBS = {name: job for name, job in read("ci.yml")["jobs"].items() if name != GREEN}


def test_there_are_the_workflows_that_these_tests_read() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "migrate.yml", "plan.yml", "release.yml"]


def test_all_green_needs_every_other_job() -> None:
    green = read("ci.yml")["jobs"][GREEN]
    assert set(green["needs"]) == set(CI_JOBS)
    assert green["if"] == "always()", "a skipped check counts as a passed one"


@pytest.mark.parametrize(
    ("results", "passes"),
    [
        ("success", True),
        ("success success success", True),
        ("success failure success", False),
        ("skipped success", False),
        ("success cancelled", False),
        ("failure", False),
        ("", False),
    ],
)
def test_all_green_passes_only_when_every_job_succeeded(results: str, passes: bool) -> None:
    (step,) = read("ci.yml")["jobs"][GREEN]["steps"]
    assert step["env"] == {"RESULTS": "${{ join(needs.*.result, ' ') }}"}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        env={"PATH": os.environ["PATH"], "RESULTS": results},
        check=False,
    )
    assert (done.returncode == 0) == passes


@pytest.mark.parametrize("name", CI_JOBS)
def test_job_runs_one_session_that_exists(name: str) -> None:
    runs = [step for step in CI_JOBS[name]["steps"] if "run" in step]
    assert len(runs) == 1
    assert sessions_of(CI_JOBS[name]) <= session_names()


def test_ci_runs_every_session() -> None:
    called = set().union(*(sessions_of(job) for job in CI_JOBS.values()))
    assert called == session_names() - {"tests"}, "tests itself runs as tests-3.11 and so on"


def test_every_python_and_postgresql_has_its_turn() -> None:
    server = combinations(CI_JOBS["tests-on-a-server"])
    pythons = {values["python"] for values in combinations(CI_JOBS["tests"]) + server}
    assert {f"tests-{python}" for python in pythons} == session_names() & {f"tests-3.{n}" for n in range(99)}
    assert {values["postgresql"] for values in server} == {"15", "16", "17"}, "18 is the embedded one"


def test_shards_are_complete() -> None:
    shards = CI_JOBS["tests"]["strategy"]["matrix"]["shard"]
    assert shards == [f"{number}/{len(shards)}" for number in range(1, len(shards) + 1)]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_is_permitted_that_a_job_does_not_ask_for(path: Any) -> None:
    workflow = read(path.name)
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        allowed = [{}, {"contents": "read"}]
        if path.stem == "release":
            allowed.append({"id-token": "write"})
        assert job["permissions"] in allowed


@pytest.mark.parametrize("job", every("job"))
def test_job_ends_by_itself(job: dict[str, Any]) -> None:
    assert 0 < job["timeout-minutes"] <= 360


@pytest.mark.parametrize("step", every("step"))
def test_step_uses_what_it_names_and_nothing_newer(step: dict[str, Any]) -> None:
    if "uses" in step:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step["uses"]), "pin it by its commit"
    if step.get("uses", "").startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] is False
    assert "${{" not in step.get("run", ""), "a value in a script is code: hand it over by env"


def test_pin_says_its_version() -> None:
    for path in WORKFLOWS:
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_release_is_tested_before_somebody_approves_it() -> None:
    workflow = read("release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}, "YAML reads the key on as true"
    build, publish = workflow["jobs"].values()
    assert (publish["needs"], publish["environment"]) == ("build", "release")
    check, nox, made = [step["run"] for step in build["steps"] if "run" in step]
    assert set(nox.split()[3:]) <= session_names()
    assert made == "uv build"
    assert "GITHUB_REF_NAME" in check
    # What may publish runs nothing of the repository.
    runs = [step["run"] for step in publish["steps"] if "run" in step]
    assert runs == ["uv publish --trusted-publishing always"]
    assert not [step for step in publish["steps"] if "checkout" in step.get("uses", "")]
    assert "secrets." not in str(workflow)


@pytest.mark.parametrize(("tag", "passes"), [("v{}", True), ("v{}0", False), ("{}", False)])
def test_release_has_a_tag_of_its_version_and_a_paragraph(tmp_path: Path, tag: str, passes: bool) -> None:
    script = next(step["run"] for step in read("release.yml")["jobs"]["build"]["steps"] if "run" in step)
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho {version('rag-factory')}\n")
    uv.chmod(0o755)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        env={
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_REF_NAME": tag.format(version("rag-factory")),
        },
        check=False,
    )
    assert (done.returncode == 0) == passes


def test_pull_request_gets_the_plan_of_its_revisions(cli: CommandLine, tmp_path: Path) -> None:
    (job,) = read("plan.yml")["jobs"].values()
    migrate, plan = [step["run"] for step in job["steps"] if "invoke" in step.get("run", "")]
    summary = tmp_path / "summary"
    programs = {"uv run --no-sync invoke": f"{sys.executable} -m invoke"}

    def run(script: str) -> None:
        for program, ours in programs.items():
            script = script.replace(program, ours)
        done = cli.run("bash", "-e", "-c", script, TARGET="main", GITHUB_STEP_SUMMARY=str(summary))
        assert done.returncode == 0, done.stderr

    # Its target branch is one revision behind.
    (cli.root / "migrations" / "HEAD").write_text("001\n")
    git = "git -c user.name=A -c user.email=a@example.org"
    run(f"git init -q && git add -A && {git} commit -qm base && git update-ref refs/remotes/origin/main HEAD")
    (cli.root / "migrations" / "HEAD").write_text("002\n")
    run(migrate)
    run(plan)
    assert "1 revision to 002" in summary.read_text().splitlines()[0]


def test_migrations_of_one_environment_never_meet() -> None:
    concurrency = read("migrate.yml")["concurrency"]
    assert "inputs.environment" in concurrency["group"]
    assert concurrency["cancel-in-progress"] is False


def test_migration_needs_the_protected_environment_and_a_person() -> None:
    workflow = read("migrate.yml")
    assert list(workflow[True]) == ["workflow_dispatch"], "YAML reads the key on as true"
    (job,) = workflow["jobs"].values()
    assert job["environment"] == "${{ inputs.environment }}"
    assert "secrets." not in str(job["env"])


def test_migration_looks_before_it_changes_anything() -> None:
    (job,) = read("migrate.yml")["jobs"].values()
    steps = [step for step in job["steps"] if TASK.search(step.get("run", ""))]
    called = [match["task"] for step in steps if (match := TASK.search(step["run"]))]
    # env.check and db.status fail where there is no database; db.create changes nothing where there is one.
    assert called == ["db.create", "env.check", "db.status", "db.plan", "db.migrate"]
    assert [step.get("if") for step in steps] == ["inputs.apply", None, None, None, "inputs.apply"]


def test_secret_reaches_only_the_steps_that_run_a_task() -> None:
    (job,) = read("migrate.yml")["jobs"].values()
    for step in job["steps"]:
        assert ("secrets." in str(step)) == bool(TASK.search(step.get("run", ""))), step
