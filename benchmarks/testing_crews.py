"""Processes that have started and imported before the clock runs, and then work at the same time."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class Crew:
    """Processes that each run one module of benchmarks/peers.

    `#` among the arguments becomes the process's number.
    """

    def __init__(
        self,
        python: Path,
        module: str,
        arguments: Sequence[str] = (),
        *,
        size: int,
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._processes = [
            subprocess.Popen(
                [
                    python,
                    "-m",
                    f"benchmarks.peers.{module}",
                    *(each.replace("#", str(number)) for each in arguments),
                ],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(size)
        ]
        for process in self._processes:
            _answer(process)

    def time(self, job: str, each: Sequence[Mapping[str, Any]]) -> float:
        """Run a job in as many processes at once as there are arguments; seconds until the last is done."""
        began = time.perf_counter()
        self.run(job, each)
        return time.perf_counter() - began

    def run(self, job: str, each: Sequence[Mapping[str, Any]] = ({},)) -> list[Any]:
        """Do the same and return the answers."""
        busy = self._processes[: len(each)]
        for process, arguments in zip(busy, each, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps([job, arguments]) + "\n")
            process.stdin.flush()
        return [_answer(process) for process in busy]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.communicate()


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    return json.loads(line)
