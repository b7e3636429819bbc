"""A test and the server take turns, and on one processor each wakes the other sooner than on two.

Left to itself, the system puts whoever is woken on a processor that is idle, and that has to be woken first:
a short statement takes five times as long.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg import Connection as Driver
from psycopg import OperationalError
from psycopg.pq import TransactionStatus

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

    def follow(self) -> None:
        """Have the server's process run where this thread does, from now on. It must be of this machine."""
        try:
            here = frozenset({_find_processor()()})
            if here != self._processor:
                os.sched_setaffinity(self.pgconn.backend_pid, here)
                self._processor = here
        except (AttributeError, OSError):  # not on this system, or not allowed here
            self._processor = frozenset()

    def ask(self, query: bytes) -> PGresult:
        """Run statements in one round trip.

        Through libpq at once: the driver's own way takes as long as all the rest, and tests ask often.
        Raises OperationalError: the connection is closed.
        """
        if self.closed:  # perhaps in the midst of a COPY, which keeps the lock
            raise OperationalError("the connection is closed")
        with self.lock:  # a thread of the test's may be at it
            return self._stay(partial(self.pgconn.exec_, query))

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Run a statement. In the midst of one, as in a COPY, both ends are busy, and run where they like."""
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            return super().wait(gen, *args, **kwargs)
        return self._stay(partial(super().wait, gen, *args, **kwargs))

    def _stay(self, run: Callable[[], T]) -> T:
        if not self._processor:
            return run()
        free = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, self._processor)
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
