"""Findings as text, JSON, annotations of GitHub Actions, and SARIF."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rag_factory.migrate.lint.finding import Finding


def as_text(findings: Iterable[Finding]) -> str:
    """For people: `file:line: rule`, then what is wrong, then the way out."""
    return "\n".join(
        f"{finding.path}:{finding.line}: {finding.rule}\n    {finding.message}\n    Instead: {finding.fix}"
        for finding in findings
    )


def as_data(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(finding) for finding in findings]


def as_annotations(findings: Iterable[Finding]) -> str:
    """Workflow commands, which GitHub shows beside the lines of a pull request."""
    return "\n".join(
        f"::error file={_property(finding.path)},line={finding.line},title={_property(finding.rule)}::"
        + _message(f"{finding.message} Instead: {finding.fix}")
        for finding in findings
    )


def as_sarif(findings: Iterable[Finding]) -> dict[str, Any]:
    """SARIF 2.1.0, which code scanners exchange."""
    results = [
        {
            "ruleId": finding.rule,
            "level": "error",
            "message": {"text": f"{finding.message} Instead: {finding.fix}"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": finding.path, "uriBaseId": "%SRCROOT%"},
                        "region": {"startLine": finding.line},
                    }
                }
            ],
        }
        for finding in findings
    ]
    rules = [{"id": rule} for rule in sorted({str(result["ruleId"]) for result in results})]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": {"name": "rag-factory", "rules": rules}}, "results": results}],
    }


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
