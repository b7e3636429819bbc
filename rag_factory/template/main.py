"""The command `rag-factory`: make a project, add the engine to one, see what an update asks of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rag_factory.errors import BehindError, RagFactoryError, RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.template.creation import Change

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0, or that of the error, which is told on stderr."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except RagFactoryError as error:
        say(str(error))
        return error.exit_code
    except OSError as error:
        say(f"{error.filename or 'A file'}: {error.strerror or error}.")
        return RagFactoryError.exit_code
    except KeyboardInterrupt:
        say("Interrupted.")
        return INTERRUPTED
    return code


def show(text: str) -> None:
    """Print data."""
    print(text)  # noqa: T201 - this is what the command gives


def say(text: str) -> None:
    """Print prose, after the data before it, also where both go to one pipe."""
    sys.stdout.flush()
    print(text, file=sys.stderr)  # noqa: T201 - likewise


def show_change(change: Change) -> None:
    """Print what is done to a file."""
    from rag_factory.template.creation import SIGNS

    show(f"{SIGNS[change.kind]} {change.path}")


class _Parser(argparse.ArgumentParser):
    """One that tells a wrong call as the tasks do."""

    def error(self, message: str) -> NoReturn:
        say(f"{message[:1].upper()}{message[1:]}. To see what there is: {self.prog} --help")
        raise SystemExit(UsageError.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rag-factory", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="write a new project", description="Write a new project.")
    new.add_argument("name", metavar="NAME", help="what it is called, like my-app; its package is my_app")
    new.add_argument("--without", metavar="SUBJECTS", help="leave out chat, tenancy, audit, or several")
    new.add_argument("--folder", type=Path, help="where to write it (./NAME)")
    new.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    new.set_defaults(run=_new)
    adopt = commands.add_parser(
        "adopt",
        help="add the engine to an Alembic project",
        description="Add the engine to an Alembic project: tasks.py, a line of conftest.py, what env.py"
        " needs, and a table in pyproject.toml. Shows the difference and asks first."
        " To repeat it changes nothing.",
    )
    adopt.add_argument(
        "folder", metavar="FOLDER", nargs="?", type=Path, default=Path(), help="the project (.)"
    )
    adopt.add_argument("--yes", action="store_true", help="do it without asking")
    adopt.add_argument("--dry-run", action="store_true", help="show the difference, and write nothing")
    adopt.set_defaults(run=_adopt)
    upgrade = commands.add_parser(
        "upgrade",
        help="say what a newer release asks of a project",
        description="Say what the releases since the recorded one ask of the project's own files."
        " Ends with 5 when there is something to do.",
    )
    upgrade.add_argument(
        "folder", metavar="FOLDER", nargs="?", type=Path, default=Path(), help="the project (.)"
    )
    upgrade.add_argument("--check", action="store_true", required=True, help="look, and change nothing")
    upgrade.add_argument("--diff", action="store_true", help="show how files differ from the template's")
    upgrade.set_defaults(run=_upgrade)
    return parser


def _new(options: argparse.Namespace) -> int:
    from rag_factory.template.creation import NEXT_STEPS, make_plan, write_new

    plan = make_plan(options.name, options.without)
    folder = options.folder or Path(options.name)
    write_new(plan, folder, dry_run=options.dry_run, on_change=show_change)
    if options.dry_run:
        say(f"Nothing was written. Without --dry-run, this is written to {folder}")
    else:
        say(f"{plan.name} is in {folder}. Next:\n  cd {folder}\n  " + "\n  ".join(NEXT_STEPS))
    return 0


def _adopt(options: argparse.Namespace) -> int:
    from rag_factory.template.adoption import plan_adoption

    adoption = plan_adoption(options.folder)
    for difference in adoption.differences():
        show(difference)
    for note in adoption.notes:
        say(f"By hand: {note}")
    if not adoption.files:
        say("Nothing to write: the engine is in this project.")
    elif options.dry_run:
        say("Nothing was written.")
    else:
        _confirm(
            f"This changes {len(adoption.files)} file(s) of {adoption.root.name} as shown", yes=options.yes
        )
        adoption.write()
        say("Written. Next:\n  invoke db.status\n  invoke db.migrate")
    return 0


def _confirm(effect: str, *, yes: bool) -> None:
    """Ask on a terminal. Raises RefusedError: not confirmed."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(f"{effect}. Nothing was written.", fix="If that is what you want, add: --yes")
    print(f"{effect}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201 - a question
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise RefusedError("Not confirmed. Nothing was written.")


def _upgrade(options: argparse.Namespace) -> int:
    from rag_factory.template.tree import TEMPLATE_VERSION
    from rag_factory.template.upgrade import check_upgrade

    advice = check_upgrade(options.folder)
    for release, text in advice.updating.items():
        show(f"{release}\n\n{text}\n")
    for path, difference in advice.differing.items():
        show(difference if options.diff else f"differs from the template: {path}")
    if advice.differing and not options.diff:
        say("What differs may be your own change. To see it: rag-factory upgrade --check --diff")
    if advice.updating:
        raise BehindError(
            f"The project's files are as of {advice.recorded}, the engine is {advice.installed}.",
            fix=f'When the above is done: {TEMPLATE_VERSION} = "{advice.installed}" in pyproject.toml.',
        )
    say(f"The project's files are as of {advice.recorded}; {advice.installed} asks for nothing more.")
    return 0
