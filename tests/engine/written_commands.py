"""Commands as they are written in documentation, held against the tasks, sessions, scripts and options.

For those that no test runs, since they make environments or run whole suites, and those in a sentence.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

from tests.conftest import ROOT
from tests.engine.test_noxfile import session_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# What isn't run as it stands, and why not.
ONLY_READ = {
    "benchmarks": "a benchmark takes minutes",
    "docker": "it needs Docker",
    "nox": "a session makes an environment and runs a whole suite; CI runs each",
    "pip": "it fetches packages",
    "pre-commit": "it is installed by itself",
    "new": "tests/engine/template run it, and nox -s template does with what comes of it",
    "template.init": "likewise",
    "upgrade": "likewise",
    "uv": "it makes environments",
    "uvx": "likewise",
    "venv": "it makes an environment",
}
# Of others: they are taken as they are.
_OTHERS = {".", "cat", "cd", "echo", "export", "git", "mv", "pwd"}
_SIGNS = frozenset("();<>|&")
_SETS_A_VARIABLE = re.compile(r"[A-Z_]+=")
_STANDS_FOR = re.compile(r"[A-Z]+|…")
_INLINE = re.compile(r"`((?:uv run |uvx |invoke |nox |pytest |rag-factory |python )[^`\n]+)`")
_INLINE_TASK = re.compile(r"`((?:db|env|template|test)\.(?!py\b|sh\b)[a-z-]+(?: [^`\n]*)?)`")


def read_inline(page: Path) -> Iterator[str]:
    """The commands that stand in the sentences and tables of a page."""
    text = page.read_text(encoding="utf-8")
    yield from _INLINE.findall(text)
    for task in _INLINE_TASK.findall(text):
        yield f"invoke {task}"


def only_read(line: str) -> bool:
    """Whether one of a line's commands is of those that aren't run."""
    return any(ONLY_READ.keys() & set(_names(words)) for words in _commands(line))


def wrong_in(line: str) -> list[str]:
    """What a line of a shell names that isn't there."""
    return [f"{line.strip()}: {problem}" for words in _commands(line) for problem in _judge(words)]


def _commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without redirections and variables."""
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if _SIGNS.issuperset(word):
            # What follows one of these is a file.
            skip = word[0] in "<>"
            if not skip and words:
                yield words
            words = words if skip else []
        elif skip:
            skip = False
        elif words or not _SETS_A_VARIABLE.match(word):
            words.append(word)


def _plain(words: list[str]) -> list[str]:
    """A command without what only says where it runs: `uv run`, `uvx`, `python -m`."""
    for prefix in (["uv", "run"], ["uvx"], ["python", "-m"]):
        if words[: len(prefix)] == prefix:
            return _plain(words[len(prefix) :])
    return words


def _names(words: list[str]) -> list[str]:
    """What a command can be known by."""
    program, *rest = _plain(words)
    if program == "python":
        return [word.partition("/")[0] for word in rest]
    return [program.partition(".")[0] if program.startswith("benchmarks.") else program, *rest[:1]]


def _judge(words: list[str]) -> Iterator[str]:
    program, *rest = _plain(words)
    judges: dict[str, Callable[[list[str]], Iterator[str]]] = {
        "invoke": _judge_invoke, "nox": _judge_nox, "pytest": _judge_pytest, "python": _judge_script,
        "rag-factory": _judge_rag_factory,
    }  # fmt: skip
    if program in judges:
        yield from judges[program](rest)
    elif program.startswith("benchmarks."):
        yield from _judge_script([f"{program.replace('.', '/')}.py", *rest])
    elif program not in _OTHERS | ONLY_READ.keys():
        yield f"{program} is not known here: run it, or name it in {__name__}"


@cache
def _tasks() -> dict[str, set[str]]:
    """The options of each task."""
    import tasks

    return {str(context.name): set(context.flag_names()) for context in tasks.namespace.to_contexts()}


@cache
def _options_of_invoke() -> set[str]:
    from invoke.program import Program

    return {f"--{name}" for argument in Program().core_args() for name in argument.names}


def _judge_invoke(words: list[str]) -> Iterator[str]:
    known, follows = _options_of_invoke(), False
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            yield f"no option {name}"
        elif name in _tasks():
            known = _tasks()[name]
        elif not follows and known is _options_of_invoke() and not _is_no_task(name):
            yield f"no task {name}"
        # --print-completion-script bash: a value, no task.
        follows = name.startswith("--") and name != "--help"


def _is_no_task(word: str) -> bool:
    return word.startswith("-") or _STANDS_FOR.fullmatch(word) is not None


def _judge_nox(words: list[str]) -> Iterator[str]:
    ours = words[: words.index("--")] if "--" in words else words
    if "-s" in ours:
        for name in ours[ours.index("-s") + 1 :]:
            if name not in session_names() and not _STANDS_FOR.fullmatch(name):
                yield f"no session {name}"


@cache
def _help_of_pytest() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def _judge_pytest(words: list[str]) -> Iterator[str]:
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("-") and not re.search(rf"(^|\s){re.escape(name)}\b", _help_of_pytest()):
            yield f"no option {name}"
        if "/" in name and not re.fullmatch(r"\d/\d", name) and not (ROOT / name).exists():
            yield f"no file {name}"


def _judge_script(words: list[str]) -> Iterator[str]:
    script, *options = words
    if not (ROOT / script).is_file():
        yield f"no file {script}"
        return
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / script).parent.glob("*.py"))
    for option in options:
        if option.startswith("--") and f'"{option}"' not in text:
            yield f"no option {option}"


def _judge_rag_factory(words: list[str]) -> Iterator[str]:
    command = [sys.executable, "-m", "rag_factory.template", words[0], "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"no command {words[0]}"
    for word in words[1:]:
        if word.startswith("--") and word not in done.stdout:
            yield f"no option {word}"
