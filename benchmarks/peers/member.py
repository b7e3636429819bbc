"""A process that has imported all it needs, and waits on stdin for the jobs of a benchmark."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def serve(jobs: Mapping[str, Callable[..., Any]]) -> None:
    """Do each job that a line of stdin names, and answer it with a line of JSON, until stdin ends.

    The first answer says that the imports are done. What the jobs print goes to stderr.
    """
    with os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8") as answers:
        os.dup2(2, 1)
        answers.write("null\n")
        for line in sys.stdin:
            job, arguments = json.loads(line)
            answers.write(json.dumps(jobs[job](**arguments)) + "\n")
