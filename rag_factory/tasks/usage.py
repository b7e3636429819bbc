"""A call that invoke itself can't read ends with our code for usage, 2, where invoke has 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke import program
from invoke.exceptions import Exit, ParseError
from invoke.parser import parser

from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from invoke.parser.context import ParserContext


class UnreadableCall(ParseError, Exit):  # noqa: N818 - it takes the place of a name of invoke's
    """An unknown task or option, or an argument that is missing. Prints as invoke's own does."""

    def __init__(self, message: str, context: ParserContext | None = None) -> None:
        super().__init__(message, context)
        # Printed as a ParseError; as an Exit it only gives the code.
        self.message = None
        self._code = UsageError.exit_code


# An argument without which a task does when it has the option: `db.stamp --detect` finds the revision.
_NOT_NEEDED_WITH = {"revision": "detect"}


_complete = parser.ParseMachine.complete_context


def _complete_context(machine: parser.ParseMachine) -> None:
    """End the reading of one task, where invoke asks for the arguments that are missing."""
    for argument in machine.context.missing_positional_args if machine.context else ():
        option = machine.context.args.get(_NOT_NEEDED_WITH.get(argument.name or "", ""))
        if option is not None and option.value:
            argument.set_value("", cast=False)
    _complete(machine)


def take_over() -> None:
    """Let invoke use ours. There is no other way in: its main function has the code as a number."""
    for module in (parser, program):
        vars(module)["ParseError"] = UnreadableCall
    parser.ParseMachine.complete_context = _complete_context  # type: ignore[method-assign, assignment] # on purpose
