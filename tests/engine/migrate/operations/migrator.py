"""A process that migrates and may be killed: forked from one that has imported everything.

Reads a job a line, forks, prints the child's pid; reads another line, then reaps the child and prints how it
ended. Until then the pid is the child's, dead or alive, and nobody else's.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from rag_factory.database.config import DatabaseConfig
from rag_factory.errors import RagFactoryError
from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.state import read_state
from rag_factory.migrate.target import reach


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_migrate(**json.loads(line)))
        print(child, flush=True)  # noqa: T201 - what the test reads
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201 - likewise


def _migrate(root: str, url: str, to: str, down: bool) -> int:
    os.environ["DATABASE_URL"] = url
    try:
        project = Project(Path(root))
        target = reach(DatabaseConfig.load(Path(root)))
        history = History.read(project)
        runner = Runner(target, project, history, on_progress=lambda _: None)
        if down:
            runner.downgrade(history.undone(read_state(target, project).revisions, to))
        else:
            runner.upgrade(to)
    except RagFactoryError:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
