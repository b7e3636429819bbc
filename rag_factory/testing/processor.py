"""A test and the server take turns, and on one processor each wakes the other sooner than on two.

Left to itself, the system puts whoever is woken on a processor that is idle, and that has to be woken first:
a short statement takes five times as long.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg import Connection as Driver
from psycopg import OperationalError
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

T = TypeVar("T")


class NearConnection(Driver[Any]):
    """A connection that can have its statements run on one processor, at both ends.

    This thread stays there only as long as a statement runs. So the threads and processes that a test starts,
    and libraries that count processors, find all of them.
    """

    _processor: frozenset[int] = frozenset()
    _unsent = b""

    def follow(self) -> None:
        """Have the server's process run where this thread does, from now on. It must be of this machine."""
        try:
            here = frozenset({_find_processor()()})
            if here != self._processor:
                os.sched_setaffinity(self.pgconn.backend_pid, here)
                self._processor = here
        except (AttributeError, OSError):  # not on this system, or not allowed here
            self._processor = frozenset()

    def spread(self) -> None:
        """Let the server's process run wherever it likes again."""
        if self._processor:
            self._processor = frozenset()
            with suppress(OSError, OperationalError):  # not allowed, or closed
                os.sched_setaffinity(self.pgconn.backend_pid, os.sched_getaffinity(0))

    def ask(self, query: bytes) -> PGresult:
        """Run statements in one round trip, after those that have waited for it.

        Through libpq at once: the driver's own way takes as long as all the rest, and tests ask often.
        Raises OperationalError: the connection is closed.
        """
        if self.closed:  # perhaps in the midst of a COPY, which keeps the lock
            raise OperationalError("the connection is closed")
        with self.lock:  # a thread of the test's may be at it
            unsent, self._unsent = self._unsent, b""
            return self.stay(partial(self.pgconn.exec_, unsent + query))

    def ask_later(self, query: bytes) -> None:
        """Have a statement wait for the next round trip. It must be one that doesn't fail."""
        self._unsent += query + b"; "

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Run a statement. In the midst of one, as in a COPY, both ends are busy, and run where they like."""
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            return super().wait(gen, *args, **kwargs)
        if self._unsent:
            # Not in one with what the driver sends, which isn't a text of statements.
            unsent, self._unsent = self._unsent, b""
            result = self.stay(partial(self.pgconn.exec_, unsent))
            if result.status != ExecStatus.COMMAND_OK:
                raise error_from_result(result)
        return self.stay(partial(super().wait, gen, *args, **kwargs))

    def stay(self, run: Callable[[], T]) -> T:
        """Do something with this thread on the connection's processor, if it has one."""
        processor = self._processor
        if not processor:
            return run()
        free = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, processor)
        except OSError:  # a container can lose it meanwhile
            self._processor = frozenset()
            return run()
        try:
            return run()
        finally:
            os.sched_setaffinity(0, free)


@cache
def _find_processor() -> Any:
    """The C library's function for where a thread runs. Raises AttributeError: it has none."""
    return ctypes.CDLL(None).sched_getcpu
