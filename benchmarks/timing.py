"""Race rivals against each other, and write down the result.

A round runs every rival once, each round beginning with another one: what else the machine does, and what one
rival leaves in its caches for the next, hits all of them alike. The figures are medians; only their ratios
mean something on another machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FEWEST_ROUNDS = 15
# All that a timed command gets of the caller's environment: no setting of ours or of libpq's among it.
INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True)
class Comparison:
    """One rival held against another. target: the largest ratio of their medians that is good enough."""

    ours: str
    theirs: str
    target: float


@dataclass(frozen=True)
class Figure:
    """What a race gave. milliseconds: by rival, in the order of the rounds."""

    title: str
    milliseconds: Mapping[str, Sequence[float]]
    comparisons: Sequence[Comparison]

    def median(self, rival: str) -> float:
        """The rival's median in milliseconds."""
        return statistics.median(self.milliseconds[rival])

    def ratio(self, comparison: Comparison) -> float:
        """The ratio of the two medians."""
        return self.median(comparison.ours) / self.median(comparison.theirs)

    def verdict(self, comparison: Comparison) -> str:
        """Whether the unrounded ratio is within its target."""
        return "met" if self.ratio(comparison) <= comparison.target else "missed"

    def as_markdown(self) -> str:
        """The figure as two tables."""
        lines = [f"### {self.title}", "", "| command | median ms | quickest ms |", "| --- | ---: | ---: |"]
        lines += [
            f"| {rival} | {self.median(rival):.1f} | {min(times):.1f} |"
            for rival, times in self.milliseconds.items()
        ]
        lines += ["", "| compared | ratio | target | |", "| --- | ---: | ---: | --- |"]
        for each in self.comparisons:
            cells = (f"{each.ours} : {each.theirs}", f"{self.ratio(each):.3f}", f"{each.target:.3g}")
            lines.append(f"| {' | '.join(cells)} | {self.verdict(each)} |")
        return "\n".join(lines)

    def as_data(self) -> dict[str, Any]:
        """The figure with every single time, for a machine."""
        return {
            "title": self.title,
            "milliseconds": {rival: list(times) for rival, times in self.milliseconds.items()},
            "comparisons": [
                {
                    "ours": each.ours,
                    "theirs": each.theirs,
                    "ratio": self.ratio(each),
                    "target": each.target,
                    "verdict": self.verdict(each),
                }
                for each in self.comparisons
            ],
        }


def race(
    title: str,
    rivals: Mapping[str, Callable[[], float]],
    comparisons: Sequence[Comparison],
    rounds: int,
) -> Figure:
    """Run all rivals in turn, after a first round that warms the caches and doesn't count.

    Each rival does its job once, with what it needs before and after, and returns the job's own seconds.
    """
    names = list(rivals)
    milliseconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        progress(f"{title}: round {number} of {rounds}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = rivals[name]()
            if number > 0:
                milliseconds[name].append(seconds * 1000)
    return Figure(title, milliseconds, comparisons)


def time_command(
    arguments: Sequence[str | Path],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    account: Mapping[str, Any] | None = None,
    exit_code: int = 0,
) -> float:
    """Run a command to its end and return its seconds.

    account: subprocess's arguments for another user. Raises RuntimeError: it ended with another exit code.
    """
    # A file, as a server that the command leaves running would keep a pipe open.
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        done = subprocess.run(
            arguments,
            cwd=folder,
            env=inherited_environment() if environment is None else environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
            **(account or {}),
        )
        seconds = time.perf_counter() - began
        if done.returncode != exit_code:
            output.seek(0)
            said = output.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {done.returncode}: {said}")
    return seconds


def inherited_environment() -> dict[str, str]:
    """The environment of a timed command that isn't given another."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def installed_program(name: str) -> Path:
    """The path of a console script that belongs to this very interpreter."""
    return Path(sys.executable).with_name(name)


def describe_machine(packages: Sequence[str], **further: str) -> dict[str, str]:
    """What the figures depend on, without anything that names the machine. packages: to tell versions of."""
    release = platform.freedesktop_os_release() if sys.platform == "linux" else {}
    return {
        "cores": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()),
        "CPU": _cpu_model(),
        "system": release.get("PRETTY_NAME", f"{platform.system()} {platform.release()}"),
        "Python": platform.python_version(),
        **further,
        **{package: importlib.metadata.version(package) for package in packages},
    }


def parse_arguments(description: str | None, parts: Sequence[str] = ()) -> argparse.Namespace:
    """Read --json and --repeat, which every benchmark has. parts: what --only may choose from."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON, with every single time")
    parser.add_argument("--repeat", type=int, default=21, metavar="ROUNDS", help="counted rounds (21)")
    if parts:
        parser.add_argument(
            "--only", nargs="+", choices=parts, default=parts, metavar="PART", help=f"of {', '.join(parts)}"
        )
    arguments = parser.parse_args()
    if arguments.repeat < FEWEST_ROUNDS:
        progress(f"warning: {arguments.repeat} rounds are too few to judge by; {FEWEST_ROUNDS} or more are")
    if arguments.repeat < 1:
        parser.error("--repeat must be 1 or more")
    return arguments


class Result(Protocol):
    """What a report is made of."""

    def as_markdown(self) -> str:
        """The result as tables."""

    def as_data(self) -> dict[str, Any]:
        """The result for a machine."""


def report(machine: Mapping[str, str], figures: Sequence[Result], *, as_json: bool) -> None:
    """Print the result, for people as the tables of README.md."""
    if as_json:
        print(json.dumps({"machine": machine, "figures": [each.as_data() for each in figures]}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for figure in figures:
        print(f"\n{figure.as_markdown()}")


def progress(text: str) -> None:
    """Tell whoever waits; to stderr, so that stdout holds the result alone."""
    print(text, file=sys.stderr, flush=True)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
