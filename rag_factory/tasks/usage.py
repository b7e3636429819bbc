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


def take_over() -> None:
    """Let invoke raise ours. There is no other way in: the code stands as a number in its main function."""
    for module in (parser, program):
        vars(module)["ParseError"] = UnreadableCall
