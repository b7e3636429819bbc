"""`python -m rag_factory.migrate.lint [--github] [--since COMMIT]`: db.lint where no task runs, as in nox."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rag_factory.errors import RagFactoryError
from rag_factory.migrate.lint import lint
from rag_factory.migrate.lint.output import as_annotations, as_text
from rag_factory.migrate.project import Project


def main() -> int:
    """Lint the project in the current folder. Returns the exit code: 0 clean, 1 findings, or as a task."""
    parser = argparse.ArgumentParser(prog="python -m rag_factory.migrate.lint")
    parser.add_argument("--since", help="only revisions added or changed since this git commit")
    parser.add_argument("--github", action="store_true", help="annotations of GitHub Actions as well")
    given = parser.parse_args()
    try:
        report = lint(Project(Path.cwd()), given.since)
    except RagFactoryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if report.findings:
        print(as_text(report.findings))
    if report.findings and given.github:
        print(as_annotations(report.findings))
    print(f"{len(report.findings)} findings in {report.revisions} revisions", file=sys.stderr)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
