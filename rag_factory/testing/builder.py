"""Build a template and clone it in a process of its own, while the run collects its tests.

So the run starts its workers meanwhile, and has never imported Alembic or an env.py, whether a template was
there or not.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path
    from typing import IO

# How long a builder that is told to end may take back what it has begun.
END_SECONDS = 5.0
# What nobody has used for so long is collected when a new template is built.
UNUSED_SECONDS = 7 * 86_400.0
# Ctrl-C reaches this process and the run, which then ends this one by the other signal.
_ENDS = (signal.SIGINT, signal.SIGTERM)
_CODE = "import sys; sys.path[:] = {path!r}; from rag_factory.testing.builder import main; main()"


@dataclass(frozen=True)
class Job:
    """What a builder is to make. place: as plain data. name: the template's. workers: how many clones."""

    root: str
    place: dict[str, Any]
    name: str
    strategy: str
    workers: int


@dataclass(frozen=True)
class Made:
    """What a builder has made, or the problem that it had. template: as plain data.

    tickets: for the workers' databases. said: all of it in words. finished: when, in epoch seconds.
    """

    template: dict[str, Any] | None = None
    tickets: list[Any] = field(default_factory=list)
    said: str = ""
    problem: str = ""
    finished: float = 0.0


class Builder:
    """A process that builds. It sees the environment and the import path of the one that starts it.

    made: a future of what it makes.
    """

    def __init__(self, job: Job) -> None:
        self._errors = TemporaryFile()  # noqa: SIM115 - it goes with its last holder, however that ends
        # Python goes past entries of other types, which a conftest may have put there.
        path = [entry for entry in sys.path if isinstance(entry, str)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        # Not among its arguments: the address holds the password. So little fits into a pipe.
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{json.dumps(asdict(job))}\n".encode())
            self._process.stdin.flush()
        # In a thread, so that xdist goes on looking after its workers meanwhile.
        pool = ThreadPoolExecutor(1)
        self.made = pool.submit(self._wait)
        pool.shutdown(wait=False)

    def write_to(self, note: Path) -> None:
        """Write a file of what it makes, for `read_note` in other processes.

        It is locked until that is known: the kernel lets them read however this process ends.
        Raises OSError: there can't be such a file, or it can't be locked.
        """
        file = note.open("w", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        self.made.add_done_callback(partial(_write, file))

    def _wait(self) -> Made:
        answer, _ = self._process.communicate()
        try:
            return Made(**json.loads(answer))
        except ValueError:
            self._errors.seek(0)
            # Of a traceback, what was wrong.
            told = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            code = self._process.returncode
            return Made(problem=f"The process that builds the test template ended with {code}. {told}")
        finally:
            self._errors.close()

    def stop(self) -> None:
        """End it, and let it drop what isn't finished."""
        self._process.terminate()
        try:
            self.made.result(END_SECONDS)
        except TimeoutError:
            self._process.kill()
            self.made.result()


def _write(file: IO[str], made: Future[Made]) -> None:
    with file:
        json.dump(asdict(made.result()), file)


def read_note(note: Path) -> Made:
    """Wait for what another process writes of its builder, and read it."""
    try:
        with note.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return Made(**json.load(file))
    except (OSError, ValueError) as error:
        return Made(problem=f"{note}, which tells what was built, can't be read: {error}.")


def main() -> None:
    """Read a job, do it, and write what was made."""
    # Nearly all that it makes lives as long as it does.
    gc.set_threshold(100_000)
    for number in _ENDS:
        signal.signal(number, _end)
    # What a revision prints is no part of the answer.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        made = make(Job(**json.loads(sys.stdin.readline())))
        answer.write(f"{json.dumps(asdict(made))}\n")
    # To take all down in order takes longer than to build it, and is nothing that the run could wait for.
    os._exit(0)


def _end(*_: object) -> NoReturn:
    """End by taking back what has been begun; a second signal doesn't disturb that."""
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def make(job: Job) -> Made:
    """Build the template, unless another run does; clone it; drop what nobody uses any more."""
    from pathlib import Path

    from psycopg import Error as DriverError

    from rag_factory.database.driver import translate
    from rag_factory.errors import RagFactoryError
    from rag_factory.migrate.project import Project
    from rag_factory.testing.cleanup import clean
    from rag_factory.testing.databases import lease_many, open_keeper, say_origins
    from rag_factory.testing.place import Place, checkout_id
    from rag_factory.testing.template import ensure_template, lock_key, unlock

    root, place = Path(job.root), Place.from_data(job.place)
    try:
        with open_keeper(place.url) as server:
            template = ensure_template(server, place, Project(root), job.name, job.strategy)
            databases = lease_many(server, place, template, checkout_id(root, place), job.workers)
            finished = time.time()
            dropped = clean(server, place.base, unused_for_seconds=UNUSED_SECONDS) if template.built else []
            # Now: the server frees those of an ended session only after a while.
            unlock(server, *(lock_key(database.name) for database in databases))
    except RagFactoryError as error:
        return Made(problem=str(error))
    except DriverError as error:
        return Made(problem=str(translate(error, place.url)))
    said = say_origins(template, databases) + (f", {len(dropped)} old ones dropped" if dropped else "")
    tickets = [tuple(database.ticket) for database in databases]
    return Made(template.as_data(), tickets, said, finished=finished)
