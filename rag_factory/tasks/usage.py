"""A call that invoke can't read: what is wrong with it, what may have been meant, and its exit code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from invoke import program
from invoke.exceptions import Exit, ParseError
from invoke.executor import Executor
from invoke.parser import parser

from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from invoke.parser.context import ParserContext

# invoke's own words.
_UNKNOWN = re.compile(r"No idea what '(.*)' is!", re.DOTALL)
_MISSING = re.compile(r".* did not receive required positional arguments: (.*)")
_LONELY = re.compile(r"Flag <Argument: (\S+).*> needed value and was not given one!")

# An argument without which a task does when it has the option: `db.stamp --detect` finds the revision.
_NOT_NEEDED_WITH = {"revision": "detect"}
_complete = parser.ParseMachine.complete_context


class UnreadableCall(ParseError, Exit):  # noqa: N818 - it takes the place of a name of invoke's
    """An unknown task or option, or an argument that is missing. Prints as invoke's own does."""

    task_names: ClassVar[Collection[str]] = ()

    def __init__(self, message: str, context: ParserContext | None = None) -> None:
        super().__init__(message, context)
        # Printed as a ParseError; as an Exit it only gives the code.
        self.message = None
        self._said = message
        self._code = UsageError.exit_code

    def __str__(self) -> str:
        """What invoke prints: what it said, without the parser's insides, and a hint for a misspelt word."""
        # The context of a call that names no task yet has no name either.
        task = self.context.name if self.context else None
        if missing := _MISSING.fullmatch(self._said):
            return f"{task} needs {missing[1]}. See: invoke --help {task}"
        if lonely := _LONELY.fullmatch(self._said):
            return f"--{lonely[1]} needs a value. See: invoke --help {task}"
        unknown = _UNKNOWN.fullmatch(self._said)
        if unknown is None:
            return self._said
        word = unknown[1]
        if not word.startswith("-"):
            return f"There is no task {word}.{_hint(word, self.task_names, '--list')}"
        options = self.context.flag_names() if self.context else ()
        if task is None:
            return f"invoke has no option {word}.{_hint(word, options, '--help')}"
        return f"{task} has no option {word}.{_hint(word, options, f'--help {task}')}"


def take_over(task_names: Collection[str]) -> None:
    """Let invoke use ours. There is no other way in: its main function has the code as a number."""
    UnreadableCall.task_names = task_names
    for module in (parser, program):
        vars(module)["ParseError"] = UnreadableCall
    # Each task runs as often as it is named: `invoke db.migrate db.rollback db.migrate` is a round trip. The
    # setting for it would have to stand in a file of the project's: a namespace's comes too late.
    Executor.dedupe = lambda _, calls: calls  # type: ignore[assignment, method-assign] # on purpose
    parser.ParseMachine.complete_context = _complete_context  # type: ignore[method-assign, assignment] # on purpose


def _complete_context(machine: parser.ParseMachine) -> None:
    """End the reading of one task, where invoke asks for the arguments that are missing."""
    for argument in machine.context.missing_positional_args if machine.context else ():
        option = machine.context.args.get(_NOT_NEEDED_WITH.get(argument.name or "", ""))
        if option is not None and option.value:
            argument.set_value("", cast=False)
    _complete(machine)


def _hint(word: str, names: Collection[str], listing: str) -> str:
    likely = _similar(word, names)
    meant = f" Did you mean {' or '.join(likely)}?" if likely else ""
    return f"{meant} See what there is: invoke {listing}"


def _similar(word: str, names: Collection[str]) -> Sequence[str]:
    """The names that are spelt like the word, or end like it: `migrate` for `db.migrate`."""
    from difflib import get_close_matches

    same_end = [name for name in names if name.rpartition(".")[2] == word]
    return same_end or get_close_matches(word, names, n=2, cutoff=0.7)
