"""tests/README.md: its examples run, and it names every group."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.testing.run import GROUPS
from tests.conftest import ROOT, clean_environment

if TYPE_CHECKING:
    from tests.engine.testing.conftest import Checkout

README = Path(__file__).parents[2] / "README.md"


def test_the_examples_run(checkout: Checkout) -> None:
    checkout.write_revision("CREATE TABLE documents (id bigserial PRIMARY KEY, filename text NOT NULL)")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    checkout.write("tests/test_examples.py", "\n".join(blocks))
    checkout.pytest().assert_passed(6)


def test_this_projects_own_tests_run_without_a_database() -> None:
    folders = ("tests/unit", "tests/integration", "tests/migrations")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *folders],
        cwd=ROOT,
        env=clean_environment(
            {"RUN_DB_TESTS": "false", "TEST_DATABASE_URL": "postgresql://nobody.invalid/test"}
        ),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert " passed, " in run.stdout


def test_every_group_is_told() -> None:
    text = README.read_text()
    assert [name for name in GROUPS.values() if f"`{name}`" not in text] == []
