"""What all tasks have in common: what they are given, and how an error ends them."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from invoke.exceptions import Exit
from invoke.tasks import Task, task

from rag_factory.errors import RagFactoryError, StoppedError
from rag_factory.tasks.output import say
from rag_factory.tasks.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from invoke.context import Context
    from invoke.parser.argument import Argument

P = ParamSpec("P")
INTERRUPTED = 130
TERMINATED = 143
_DEBUG = inspect.Parameter("debug", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False)


class Terminated(KeyboardInterrupt):
    """SIGTERM: the task ends as with Ctrl-C, so that what it began is rolled back and cleaned up."""


class Command(Task):  # type: ignore[type-arg]
    """A task that equals only itself, and keeps its help texts.

    invoke compares the code of the functions, which is one for all of ours: it would take `env.show` for a
    second call of `db.show`, and not run it. And it takes each help text away as it reads it.
    """

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Its arguments, each with its help text."""
        texts = dict(self.help)
        try:
            return super().get_arguments(ignore_unknown_help)
        finally:
            self.help = texts


def command(
    name: str, /, **help_texts: str
) -> Callable[[Callable[Concatenate[Workspace, P], None]], Command]:
    """Make a task of a function that takes a Workspace. help_texts: one for each of its arguments.

    The task runs in the project's root, wherever it was called from; it gets a `--debug` of its own.
    """

    def decorate(body: Callable[Concatenate[Workspace, P], None]) -> Command:
        @functools.wraps(body)
        def run(context: Context, /, *arguments: Any, debug: bool = False, **options: Any) -> None:
            root = Path(context.config.rag_factory.root)
            os.chdir(root)
            _show_warnings_as_prose()
            _show_server_log(root)
            _end_on_sigterm()
            try:
                body(Workspace(root), *arguments, **options)
            except (Exit, KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - the last place to tell it
                if debug and not isinstance(error, Exit):
                    import traceback

                    from rag_factory.database.url import scrub

                    say(scrub("".join(traceback.format_exception(error))))
                raise _exit(error) from None

        signature = inspect.signature(body)
        parameters = [*signature.parameters.values(), _DEBUG]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        texts = {**help_texts, "debug": "Show the traceback of an error."}
        made = task(klass=Command, name=name, help=texts)(run)
        assert isinstance(made, Command)  # noqa: S101 - invoke's own annotation says Any
        return made

    return decorate


def _exit(error: BaseException) -> Exit:
    """How a task that raised ends."""
    match error:
        case Exit():
            return error
        case StoppedError():
            code = TERMINATED if isinstance(error.__cause__, Terminated) else INTERRUPTED
            return Exit(str(error), code=code)
        case RagFactoryError():
            return Exit(str(error), code=error.exit_code)
        case Terminated():
            return Exit("Terminated.", code=TERMINATED)
        case KeyboardInterrupt():
            return Exit("Interrupted.", code=INTERRUPTED)
        case BrokenPipeError():
            # The reader of our output has gone, as `head` does; nobody is left to be told.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Exit(code=0)
        case OSError():
            what = f"{error.filename or 'A file'}: {error.strerror or error}."
            return Exit(what, code=RagFactoryError.exit_code)
    from rag_factory.database.url import scrub

    what = scrub(f"{type(error).__name__}: {error}")
    return Exit(f"This should not happen: {what}. To see where: --debug", code=RagFactoryError.exit_code)


def _end_on_sigterm() -> None:
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        return  # only that one may set a handler

    def end(_: int, __: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)


def _show_warnings_as_prose() -> None:
    """Show warnings to users as one line, without the place in our code."""
    import warnings

    def showwarning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, FutureWarning):
            say(f"warning: {message}")

    warnings.showwarning = showwarning


def _show_server_log(root: Path) -> None:
    """Say what the embedded server's launcher does, with folders as seen from the project."""
    import logging

    logger = logging.getLogger("rag_factory.server")
    if logger.handlers:
        return

    class Prose(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage().replace(f"{root}{os.sep}", ""))

    logger.addHandler(Prose())
    logger.setLevel(logging.INFO)
    logger.propagate = False
