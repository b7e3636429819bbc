"""`# lint: ignore RULE: reason`, a comment anywhere in a revision: the rule is not held against it."""

from __future__ import annotations

import io
import re
import tokenize
from typing import TYPE_CHECKING

from rag_factory.migrate.lint.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

_IGNORE = re.compile(r"#\s*lint:\s*ignore\b\s*(?P<rule>[\w-]*)\s*:?\s*(?P<reason>.*)", re.IGNORECASE)
_FORM = "# lint: ignore RULE: why it is right here"


def apply_ignores(source: str, path: str, findings: Iterable[Finding]) -> list[Finding]:
    """Leave out what one revision's comments ignore, and add what is wrong with these comments."""
    left = list(findings)
    for line, rule, reason in _read(source):
        if not rule or not reason:
            what = f"An ignore of {rule}" if rule else "An ignore"
            missing = "says no reason" if rule else "names no rule"
            left.append(
                Finding(path, line, "ignore-without-reason", f"{what} {missing}: it has no effect.", _FORM)
            )
            continue
        kept = [finding for finding in left if finding.rule != rule]
        if len(kept) == len(left):
            message = f"Nothing here breaks the rule {rule}."
            kept.append(Finding(path, line, "ignore-unused", message, "Take the comment out."))
        left = kept
    return left


def _read(source: str) -> list[tuple[int, str, str]]:
    """The line, rule and reason of each such comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    return [
        (line, found["rule"], found["reason"].strip())
        for line, comment in comments
        if (found := _IGNORE.match(comment))
    ]
