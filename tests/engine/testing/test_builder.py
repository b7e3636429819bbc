"""A process of its own builds a template while tests are collected, however it or the run ends."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.engine.testing.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.testing.conftest import Checkout

TESTS = """
def test_unit():
    pass

def test_database(db_connection):
    assert db_connection.execute(text("SELECT count(*) FROM item")).scalar() == 0
"""
# A path that is no text is of no use to Python, and no harm.
CONFTEST = """
import sys
from pathlib import Path
sys.path[:0] = [Path("elsewhere"), str(Path(__file__).parent.parent / "more")]
pytest_plugins = ["rag_factory.testing.plugin"]
"""
PLUGIN = 'pytest_plugins = ["rag_factory.testing.plugin"]\n'
# Files tell which processes have collected their tests, and which were interrupted.
NOTES = """
import os
from pathlib import Path
WHO = os.environ.get("PYTEST_XDIST_WORKER", "run")

def pytest_collection_finish():
    Path(__file__).with_name(f"{WHO}-{os.getpid()}.waits").touch()

def pytest_keyboard_interrupt():
    Path(__file__).with_name(f"{WHO}.interrupted").touch()
"""
# A worker loses sight of the file that tells what was built.
BLIND = """
def pytest_collection_finish(session):
    if hasattr(session.config, "workerinput"):
        for file in session.config._tmp_path_factory.getbasetemp().parent.glob("rag_factory.json"):
            file.unlink()
"""
EACH_WAY = pytest.mark.parametrize("more", [[], ["-n", "2"]], ids=["alone", "workers"])
SOON_SECONDS = 30


@EACH_WAY
def test_no_run_imports_alembic_also_when_it_builds(checkout: Checkout, more: list[str]) -> None:
    checkout.write_test(TESTS + "    import sys\n    assert 'alembic' not in sys.modules\n")
    result = checkout.pytest(*more)
    result.assert_passed(2)
    assert " built, " in result.header


@EACH_WAY
def test_the_header_says_that_a_template_is_being_built(checkout: Checkout, more: list[str]) -> None:
    checkout.write_test(TESTS)
    lines = [line for line in checkout.pytest(*more).output.splitlines() if line.startswith("databases: ")]
    being_built, built = lines
    assert being_built.endswith(" is being built")
    assert built.startswith(being_built.removesuffix(" is being built") + " built, ")


@EACH_WAY
def test_a_terminal_shows_it_on_a_line_of_its_own(checkout: Checkout, more: list[str]) -> None:
    checkout.write_test(TESTS)
    ours, theirs = os.openpty()
    run = checkout.start(*more, terminal=theirs)
    os.close(theirs)
    shown = b""
    # Linux tells the end of the other side by an error.
    with suppress(OSError):
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert run.wait() == 0, shown
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown.decode())]
    assert sum(line.startswith("databases: ") for line in lines) == 2
    assert not [line for line in lines if "databases: " in line and not line.startswith("databases: ")]


@EACH_WAY
@pytest.mark.parametrize("quiet", ["-q", "--no-header"])
def test_a_quiet_run_says_nothing_of_it(checkout: Checkout, more: list[str], quiet: str) -> None:
    checkout.write_test(TESTS)
    result = checkout.pytest(quiet, *more)
    result.assert_passed(2)
    assert result.header == ""


def test_workers_without_a_folder_of_the_run_wait_for_the_template(checkout: Checkout) -> None:
    checkout.write_test(TESTS)
    result = checkout.pytest("-n", "2", "-p", "no:tmpdir")
    result.assert_passed(2)
    assert " built, 2 cloned, " in result.header


def test_what_a_revision_prints_is_not_taken_for_an_answer(checkout: Checkout) -> None:
    checkout.write_test(TESTS)
    answer = '{"problem": "none"}\\n'
    checkout.write_revision("SELECT 1", 2, code=f"import os; print('{answer}'); os.write(1, b'{answer}')")
    result = checkout.pytest()
    result.assert_passed(2)
    assert "problem" not in result.output


@EACH_WAY
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.write(2, b'out of luck'); os._exit(7)", "ended with 7. out of luck"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9."),
        ("raise KeyboardInterrupt", "ended with -2. KeyboardInterrupt"),
    ],
    ids=["exit", "kill", "interrupt"],
)
def test_a_builder_that_dies_fails_the_database_tests_alone(
    checkout: Checkout, code: str, said: str, more: list[str]
) -> None:
    checkout.write_test(TESTS)
    checkout.write_revision("SELECT 1", 2, code=code)
    result = checkout.pytest(*more)
    assert result.outcomes == {"test_unit": "passed", "test_database": "error"}, result.output
    assert result.header.startswith(f"databases: none. The process that builds the test template {said}")
    assert said in result.texts["test_database"]
    assert "Traceback" not in result.output
    checkout.write_revision("SELECT 1", 2)
    checkout.pytest(*more).assert_passed(2)


@EACH_WAY
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "run"])
def test_an_interrupted_run_takes_its_builder_with_it(
    checkout: Checkout, more: list[str], whole_group: bool
) -> None:
    checkout.write_test(TESTS)
    checkout.write_revision(f"SELECT pg_sleep({2 * SOON_SECONDS})", 2)
    run = checkout.start(*more)
    wait_until(lambda: sleeps(checkout), "the revision to run")
    began = time.monotonic()
    if whole_group:
        os.killpg(run.pid, signal.SIGINT)
    else:
        os.kill(run.pid, signal.SIGINT)
    result = checkout.finish(run)
    assert time.monotonic() - began < SOON_SECONDS
    assert result.code == 2, result.output
    assert checkout.databases() == set()
    assert not sleeps(checkout)


@EACH_WAY
def test_a_builder_outlives_a_killed_run_and_the_next_one_takes_what_it_makes(
    checkout: Checkout, more: list[str]
) -> None:
    checkout.write_test(TESTS)
    checkout.write_revision("SELECT pg_sleep(2)", 2)
    run = checkout.start(*more)
    wait_until(lambda: sleeps(checkout), "the revision to run")
    run.kill()
    result = checkout.pytest(*more)
    result.assert_passed(2)
    assert " cached, " in result.header
    # Those that the first builder still leased are not the ones that the next run took.
    assert checkout.databases("^(?!ragt_)") <= {checkout.worker(slot) for slot in range(4)}
    assert len(checkout.databases("^ragt_")) == 1


def test_a_worker_that_dies_while_it_waits_is_replaced(checkout: Checkout) -> None:
    waiting = write_notes(checkout)
    checkout.write_test(TESTS)
    checkout.write_revision("SELECT pg_sleep(3)", 2)
    run = checkout.start("-n", "2")
    wait_until(lambda: len(waiting()) == 2 and sleeps(checkout), "the workers to wait")
    os.kill(waiting()[0], signal.SIGKILL)
    result = checkout.finish(run)
    assert "replacing crashed worker gw0" in result.output
    assert "INTERNALERROR" not in result.output
    assert "passed" in result.outcomes.values()
    assert set(result.outcomes.values()) <= {"passed", "error"}, result.output
    assert " built, 2 cloned, " in result.header


def test_workers_are_not_left_waiting_by_a_run_that_is_interrupted(checkout: Checkout) -> None:
    waiting = write_notes(checkout)
    checkout.write_test(TESTS)
    checkout.write_revision(f"SELECT pg_sleep({2 * SOON_SECONDS})", 2)
    run = checkout.start("-n", "2")
    wait_until(lambda: len(waiting()) == 2 and sleeps(checkout), "the workers to wait")
    os.kill(run.pid, signal.SIGINT)
    assert checkout.finish(run).code == 2
    # execnet would have had to interrupt them after a while.
    assert [file.name for file in checkout.root.glob("tests/*.interrupted")] == ["run.interrupted"]


def test_a_worker_that_can_not_learn_what_was_built_says_so(checkout: Checkout) -> None:
    checkout.write("tests/conftest.py", PLUGIN + BLIND)
    checkout.write_test(TESTS)
    result = checkout.pytest("-n", "1")
    assert result.outcomes == {"test_unit": "passed", "test_database": "error"}, result.output
    assert "rag_factory.json, which tells what was built, can't be read: " in result.texts["test_database"]


@pytest.mark.parametrize(
    "workers",
    [
        ["--tx", "2*popen"],
        ["--tx", "popen//id=one", "--tx", "popen//id=two"],
        ["--tx", f"2*popen//python={sys.executable}"],
    ],
    ids=["two", "named", "python"],
)
def test_workers_by_any_name_have_a_database_each(checkout: Checkout, workers: list[str]) -> None:
    checkout.write_test(TESTS)
    for origin in ("built, 2 cloned, ", "cached, 2 kept, "):
        result = checkout.pytest("-d", *workers)
        result.assert_passed(2)
        assert origin in result.header


@pytest.mark.parametrize("wrong", ["this is no Python", "raise KeyboardInterrupt"])
def test_a_run_that_can_not_collect_does_not_wait_for_its_template(checkout: Checkout, wrong: str) -> None:
    checkout.write_test(TESTS, "test_a")
    checkout.write("tests/test_wrong.py", f"{wrong}\n")
    checkout.write_revision(f"SELECT pg_sleep({2 * SOON_SECONDS})", 2)
    began = time.monotonic()
    result = checkout.pytest()
    assert time.monotonic() - began < SOON_SECONDS
    assert result.code == 2, result.output
    assert "test_wrong" in result.output
    assert checkout.databases() == set()


def test_a_builder_imports_what_the_run_can(checkout: Checkout) -> None:
    checkout.write("tests/conftest.py", CONFTEST)
    checkout.write("more/named.py", "STATEMENT = 'SELECT 1'\n")
    checkout.write_revision("SELECT 1", 2, code="import named")
    checkout.write_test(TESTS)
    checkout.pytest().assert_passed(2)


def write_notes(checkout: Checkout) -> Callable[[], list[int]]:
    """Let the workers note what they do; what finds those that wait for the template, by their number."""
    checkout.write("tests/conftest.py", PLUGIN + NOTES)

    def waiting() -> list[int]:
        return [int(file.stem.partition("-")[2]) for file in sorted(checkout.root.glob("tests/gw*.waits"))]

    return waiting


def sleeps(checkout: Checkout) -> bool:
    """Whether a revision of this checkout sleeps on the server."""
    with checkout.connect() as server:
        found = server.execute(
            "SELECT FROM pg_stat_activity WHERE starts_with(datname, %s) AND wait_event = 'PgSleep'",
            (checkout.base,),
        )
        return found.rowcount > 0
