"""squawk, a linter of PostgreSQL migrations: which of its rules we ask, and what they say of a revision."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_factory.errors import NotReadyError, RagFactoryError
from rag_factory.migrate.lint.finding import Finding
from rag_factory.migrate.lint.sql import bare, split_statements
from rag_factory.migrate.state import OLDEST_POSTGRESQL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rag_factory.migrate.lint.recording import Recording, Statement

_TIMEOUTS = "the runner and env.py set the settings' timeouts on each session"
_TYPES = "which type a column has is the models' affair: it locks nothing"
_OURS = "a rule of our own says it, with the operation to use instead"
# Its rules that are not asked, each with the reason.
OFF = {
    "require-lock-timeout": _TIMEOUTS,
    "require-statement-timeout": _TIMEOUTS,
    "require-timeout-settings": _TIMEOUTS,
    "require-enum-value-ordering": _TYPES,
    "ban-char-field": _TYPES,
    "prefer-bigint-over-int": _TYPES,
    "prefer-bigint-over-smallint": _TYPES,
    "prefer-identity": _TYPES,
    "prefer-text-field": _TYPES,
    "prefer-timestamp-tz": _TYPES,
    "require-concurrent-index-creation": _OURS,
    "ban-drop-constraint": "it only lets more in, and DROP IF EXISTS before ADD is how a step is repeatable",
}
_CONTRACT = "First a release that no longer uses it; then this, with an ignore that says so"
# The safe way in our words, where there is an operation for it.
_SAFE_WAYS = {
    "adding-foreign-key-constraint": "op.add_foreign_key_online, alone in its revision",
    "adding-not-nullable-field": "op.set_not_null_online, alone in its revision",
    "adding-required-field": "Add it nullable or with a constant default; fill it: op.backfill; then "
    "op.set_not_null_online",
    "adding-field-with-default": "Add it without the default, set the default, then fill it: op.backfill",
    "ban-concurrent-index-creation-in-transaction": "op.create_index_online, alone in its revision",
    "ban-drop-column": _CONTRACT,
    "ban-drop-function": _CONTRACT,
    "ban-drop-table": _CONTRACT,
    "constraint-missing-not-valid": "op.add_check_online or op.add_foreign_key_online, alone in its revision",
    "disallowed-unique-constraint": "op.add_unique_online, alone in its revision",
    "renaming-column": "Add one of the new name, kept in step by a trigger, and fill it: op.backfill; drop "
    "the old one when no running release uses it",
    "renaming-table": "Rename it, and leave a view of the old name until no running release uses that",
    "prefer-robust-stmts": "IF NOT EXISTS or IF EXISTS, as it runs outside of the transaction, or an online "
    "operation",
    "require-concurrent-index-deletion": "op.drop_index_online, alone in its revision",
}


def check_revisions(recordings: Mapping[str, Recording]) -> list[Finding]:
    """Show squawk the SQL of these revisions, by the path that findings name their file by.

    What an operation of the engine runs isn't shown: it is safe by the order of its steps, which squawk can't
    see. Raises NotReadyError: squawk isn't installed.
    """
    program = _program()
    with tempfile.TemporaryDirectory(prefix="rag-factory-lint-") as name:
        folder = Path(name)
        files: dict[str, tuple[str, Recording, list[Statement | None]]] = {}
        for number, (path, recording) in enumerate(recordings.items()):
            sql, lines = _script(recording.statements)
            if sql:
                file = folder / f"{number}.sql"
                file.write_text(sql, encoding="utf-8")
                files[str(file)] = (path, recording, lines)
        # A project's own settings of squawk don't count: an ignore needs a reason, in the revision.
        settings = folder / "squawk.toml"
        settings.touch()
        said = _run(program, settings, list(files)) if files else []
    findings = []
    for problem in said:
        path, recording, lines = files[problem["file"]]
        statement = lines[min(problem["line"], len(lines) - 1)]
        rule = problem["rule_name"]
        known_safe = _KNOWN_SAFE.get(rule)
        if statement is None or known_safe is None or not known_safe(statement, recording):
            findings.append(_finding(problem, rule, path, statement))
    return findings


def _finding(problem: dict[str, Any], rule: str, path: str, statement: Statement | None) -> Finding:
    message = " ".join(problem["message"].split())
    fix = _SAFE_WAYS.get(rule) or " ".join((problem["help"] or "").split())
    return Finding(path, statement.line if statement else 1, rule, message, fix)


def _script(statements: Sequence[Statement]) -> tuple[str, list[Statement | None]]:
    """The SQL with its transactions, and for each of its lines the statement it belongs to."""
    lines: list[str] = []
    owners: list[Statement | None] = []
    in_transaction = False
    for statement in statements:
        if statement.online:
            continue
        if statement.transactional != in_transaction:
            in_transaction = statement.transactional
            lines.append("BEGIN;" if in_transaction else "COMMIT;")
            owners.append(None)
        # Its own way to ignore a rule asks for no reason.
        own = statement.text.replace("squawk-ignore", "squawk ignored").removesuffix(";")
        # On a line of its own: the last one may end in a comment.
        lines += [*own.splitlines(), ";"]
        owners += [statement] * (len(lines) - len(owners))
    if in_transaction:
        lines.append("COMMIT;")
        owners.append(None)
    return "\n".join(lines), owners


def _is_repeatable(statement: Statement, recording: Recording) -> bool:
    """Whether it may run twice: it sets what it set before, or builds an index that was just dropped."""
    at = recording.statements.index(statement)
    before = " ".join(bare(earlier.text) for earlier in recording.statements[:at])
    for code in map(bare, split_statements(statement.text)):
        built = re.match(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\S+) ON", code, re.IGNORECASE)
        dropped = built and rf"DROP INDEX CONCURRENTLY IF EXISTS (?:\S+\.)?{re.escape(built[1])}\b"
        rebuilt = dropped and re.search(dropped, before, re.IGNORECASE)
        if not rebuilt and (not code.upper().startswith("ALTER ") or _ONCE.search(code)):
            return False
    return True


def _is_empty_reference(statement: Statement, _: Recording) -> bool:
    """Whether each foreign key comes with its own new column, which is NULL in every row: nothing to scan."""
    code = bare(statement.text)
    column = re.compile(r"\bADD (?:COLUMN )?(?!CONSTRAINT|FOREIGN)[^,]*?\bREFERENCES\b[^,]*", re.IGNORECASE)
    added = column.findall(code)
    rest = column.sub("", code)
    has_default = any(re.search(r"\bDEFAULT\b", clause, re.IGNORECASE) for clause in added)
    return bool(added) and not has_default and not re.search(r"\bREFERENCES\b", rest, re.IGNORECASE)


# What of an ALTER fails when it is done already.
_ONCE = re.compile(
    r"\bADD (?!(?:COLUMN|VALUE) IF NOT EXISTS)|\bDROP (?!(?:COLUMN|CONSTRAINT) IF EXISTS|NOT NULL|DEFAULT)"
    r"|\b(?:RENAME|ATTACH|DETACH)\b",
    re.IGNORECASE,
)
# What squawk takes for dangerous, and we can tell is not.
_KNOWN_SAFE = {
    "prefer-robust-stmts": _is_repeatable,
    "adding-foreign-key-constraint": _is_empty_reference,
}


def _run(program: str, settings: Path, files: list[str]) -> list[dict[str, Any]]:
    options = ["--reporter=json", f"--config={settings}", f"--pg-version={OLDEST_POSTGRESQL}"]
    done = subprocess.run(
        [program, *options, f"--exclude={','.join(OFF)}", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return list(json.loads(done.stdout))
    except ValueError as error:
        raise RagFactoryError(f"squawk failed: {done.stderr.strip() or done.stdout.strip()}") from error


def _program() -> str:
    """Where squawk is: beside this Python first, as a task may run without its environment's PATH."""
    found = shutil.which("squawk", path=str(Path(sys.executable).parent)) or shutil.which("squawk")
    if found is None:
        raise NotReadyError(
            "squawk, which looks at the SQL, is not installed.",
            fix="Install the extra: pip install 'rag-factory[lint]'",
        )
    return found
