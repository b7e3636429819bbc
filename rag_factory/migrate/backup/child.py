"""Run pg_dump or pg_restore, listening to what it says while it works."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from rag_factory.database.url import scrub
from rag_factory.errors import RagFactoryError
from rag_factory.migrate.programs import program, program_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rag_factory.migrate.target import Target

TICK_SECONDS = 0.5
_LONGEST_COMPLAINT = 800
_FULL = ("No space left on device", "File too large", "Disk quota exceeded", "SIGXFSZ")


def run(
    name: str,
    target: Target,
    options: Sequence[str | Path],
    *,
    at_least: int,
    application_name: str = "rag-factory",
    on_line: Callable[[str], None] = lambda _: None,
    on_tick: Callable[[], None] = lambda: None,
    hold: Sequence[int] = (),
    forgive: str | None = None,
) -> None:
    """Run one of PostgreSQL's programs on the target to its end.

    at_least: the oldest major version that will do. on_line: told each line of its report, on_tick called
    twice a second. hold: descriptors whose locks it holds as well. forgive: a word; an error that has it is
    none. What it writes is for this user only.
    Should this process be killed, it ends too: at the next line of its report, which nobody reads any more.
    Raises RagFactoryError: it failed, with its own words.
    """
    path = program(name, target.config, target.server, at_least=at_least)
    # In English, whatever the user reads otherwise: some of it is looked for here.
    environment = program_environment(target.url) | {"LC_ALL": "C", "PGAPPNAME": application_name}
    complaint: list[str] = []
    forgiven = False

    def hear(line: str) -> None:
        nonlocal forgiven
        if forgive is not None and forgive in line:
            forgiven = True
        elif complaint or " error: " in line:
            complaint.append(line)
        else:
            on_line(line)

    with subprocess.Popen(
        [
            path,
            "--verbose",
            "--no-password",
            *options,
            f"--dbname={target.url.without_password().plain}",
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        umask=0o077,
        pass_fds=tuple(hold),
    ) as process:
        try:
            _listen(process, hear, on_tick)
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code and not (forgiven and code == 1 and not complaint):
        raise _failure(name, code, complaint)


def version(name: str, target: Target, *, at_least: int) -> str:
    """The program's own version, such as "18.6"."""
    path = program(name, target.config, target.server, at_least=at_least)
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\) (\d[\w.]*)", said)
    return found[1] if found else "unknown"


def _listen(
    process: subprocess.Popen[bytes], hear: Callable[[str], None], on_tick: Callable[[], None]
) -> None:
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    rest = b""
    tick = time.monotonic() + TICK_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0, tick - time.monotonic()))
            if time.monotonic() >= tick:
                on_tick()
                tick = time.monotonic() + TICK_SECONDS
            if not ready:
                continue
            part = os.read(process.stderr.fileno(), 65536)
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                hear(line.decode(errors="replace"))
            if not part:
                return


def _failure(name: str, code: int, complaint: Sequence[str]) -> RagFactoryError:
    """What the program said, without the row it was at: a line CONTEXT quotes somebody's data."""
    lines = [re.sub(rf"^{name}: (error: )?", "", line) for line in complaint if "CONTEXT:" not in line]
    said = scrub(" ".join(" ".join(lines).split()))
    if code < 0:
        said = f"it was ended by {signal.Signals(-code).name}. {said}"
    if len(said) > _LONGEST_COMPLAINT:
        said = f"{said[:_LONGEST_COMPLAINT]} …"
    return RagFactoryError(f"{name} failed: {said.strip().rstrip('.')}.", fix=_fix(said))


def _fix(said: str) -> str | None:
    if any(words in said for words in _FULL):
        return "Make room there, or set BACKUP_FOLDER to a folder on another disk."
    if "CREATE EXTENSION" in said:
        return "Let a role restore it that may create the extension, such as a superuser."
    if re.search(r"OWNER TO|GRANT |DEFAULT PRIVILEGES|SET ROLE", said):
        return "To leave owners and grants out: --no-owner"
    return None
