"""One exception tree. Each class knows the exit code its task ends with.

A message says what happened, with the value, and then what to do about it. Exceptions are raised
anywhere in the engine and become exit codes only in `rag_factory.tasks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class RagFactoryError(Exception):
    """The work was tried and failed. Exit code 1, and the root of the tree.

    what: what happened, with the value that made it happen, as one or two sentences.
    fix: what to do, as a command where there is one; None where nothing general can be said.
    """

    exit_code = 1

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return self.what if self.fix is None else f"{self.what} {self.fix}"


class UsageError(RagFactoryError):
    """The call itself is wrong: an option, or a revision, step or file that isn't there."""

    exit_code = 2


class DocumentError(RagFactoryError):
    """A document can't be stored as it is given. Nothing of it was.

    document: its source path, or its filename. chunk_index: the chunk at fault; None for the document itself.
    """

    def __init__(self, document: str, chunk_index: int | None, what: str, *, fix: str | None = None) -> None:
        place = f"Document {document!r}" + ("" if chunk_index is None else f", chunk {chunk_index}")
        super().__init__(f"{place}: {what}.", fix=fix)
        self.document = document
        self.chunk_index = chunk_index


class NotReadyError(RagFactoryError):
    """The environment is not ready: settings, server, database or extension."""

    exit_code = 3


class SettingsError(NotReadyError):
    """A setting is missing, malformed, or contradicts another one."""


class ServerError(NotReadyError):
    """A PostgreSQL server can't be started, reached, or used."""


class DatabaseMissingError(NotReadyError):
    """The server answers, but has no database of that name."""


class ExtensionError(NotReadyError):
    """pgvector is missing on the server, or older than what the engine supports."""


class RefusedError(RagFactoryError):
    """A destructive task met a protected environment, or was not confirmed."""

    exit_code = 4


class BehindError(RagFactoryError):
    """Revisions are pending."""

    exit_code = 5


class DriftError(RagFactoryError):
    """Models and schema differ."""

    exit_code = 6


class HistoryError(RagFactoryError):
    """The chain of revisions is broken: several heads, one that this checkout lacks, or an edited one."""

    exit_code = 7


class LockedError(RagFactoryError):
    """A lock was not obtained in time; trying later may work."""

    exit_code = 8


class StoppedError(RagFactoryError):
    """Ctrl-C or SIGTERM ended the work at a place that is told."""

    exit_code = 130


class BackupError(RagFactoryError):
    """The backup failed, and nothing was changed after it."""

    exit_code = 9


class LeftOversError(RagFactoryError):
    """An earlier run left something half-made: an INVALID index, a half-applied revision."""

    exit_code = 10


class ProblemsError(NotReadyError):
    """Several problems found by one check, told together."""

    def __init__(self, problems: Sequence[RagFactoryError]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
