"""Pages of documentation as something that can be run: their commands, and the files they show."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engine.written_commands import only_read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CommandLine

_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n+)?"
    r'^```(?P<kind>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
# A code block of the other form, indented after an empty line: it says nothing of what it is, so none is run.
_INDENTED = re.compile(r"(?:\A|(?<=\n\n))(?: {4}|\t).*\S")
# What differs from one run to the next, in what a page shows and in what a command prints.
_VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T_]\d\d:?\d\d(:?\d\d)?(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)?"), "<time>"),
    (re.compile(r"(?<!\d)\d{8}T\d{6}Z"), "<time>"),
    (re.compile(r"\b\d{8}_\d{4}-[0-9a-f]{12}_"), "<file>_"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\bpid \d+"), "pid #"),
    (re.compile(r"\b[\d.,]+ ?(ms|s|min|bytes|kB|MB|GB)\b"), r"# \1"),
    (re.compile(r"[ \t]+"), " "),
)
_PROMPT = "$ "
# Where a reader has the embedded server's data; a test has it elsewhere.
DATA_FOLDER = ".rag_factory/server"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. title: the file it is; not_run: the reason why it isn't run, if it isn't."""

    kind: str
    title: str | None
    text: str
    not_run: str | None
    line: int


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the output that the page shows of it; empty where it shows none."""

    text: str
    output: str


def read_blocks(page: Path) -> Iterator[Block]:
    """Read the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(found["kind"], found["title"], found["text"], found["reason"], line)


def find_indented(page: Path) -> list[int]:
    """The lines at which indented blocks begin, outside of the fenced ones."""
    text = _FENCE.sub(lambda fenced: "x\n" * fenced[0].count("\n") + "x", page.read_text(encoding="utf-8"))
    return [text.count("\n", 0, found.start()) + 1 for found in _INDENTED.finditer(text)]


def read_commands(block: Block) -> Iterator[Command]:
    """Split a console block at its prompts. A command goes on in the next line after a backslash."""
    command, output = "", ""
    for line in block.text.splitlines(keepends=True):
        if line.startswith(_PROMPT):
            if command:
                yield Command(command, output)
            command, output = line.removeprefix(_PROMPT), ""
        elif command.endswith("\\\n"):
            command += line
        else:
            output += line
    yield Command(command, output)


def is_run(block: Block) -> bool:
    """Whether a block is done: not one that says why not, and none with a command that is only read."""
    if block.not_run is not None or (block.kind != "console" and block.title is None):
        return False
    return block.title is not None or not any(
        only_read(_in_this_environment(command.text)) for command in read_commands(block)
    )


def _in_this_environment(line: str) -> str:
    """A command as it is in the checkout's own environment: uv would make another one."""
    return line.replace("pip install uv && uv run ", "").replace("uv run ", "")


def run_page(page: Path, cli: CommandLine) -> Iterator[str]:
    """Do what a page does, from top to bottom. Yields what went otherwise than it says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in read_blocks(page):
        where = f"{page.name}, line {block.line}"
        if not is_run(block):
            continue
        if block.title is not None:
            file = cli.root / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.kind == "console":
            for command in read_commands(block):
                script = f"exec 2>&1\n{_in_this_environment(command.text)}"
                done = cli.run("bash", "-c", script, PATH=path, COLUMNS="110", HOME=str(cli.root))
                if done.returncode:
                    yield f"{where}: {command.text}ended with {done.returncode}:\n{done.stdout}"
                    continue
                printed = done.stdout.replace(cli.environment["EMBEDDED_DATA_FOLDER"], DATA_FOLDER)
                if command.output and not agrees(command.output, printed, cli.root):
                    yield f"{where}: {command.text}printed\n{printed}\ninstead of\n{command.output}"


def agrees(shown: str, printed: str, root: Path) -> bool:
    """Whether a command printed what the page shows. "…" stands for anything: in a line, or for lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
        for line in _without_varying(shown, root).splitlines()
    )
    return re.fullmatch(pattern, _without_varying(printed, root)) is not None


def _without_varying(text: str, root: Path) -> str:
    text = text.replace(f"{root}{os.sep}", "").replace(str(root), ".")
    for pattern, replacement in _VARIES:
        text = pattern.sub(replacement, text)
    return "\n".join(line.strip() for line in text.strip().splitlines()) + "\n"
