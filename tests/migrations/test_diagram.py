"""The picture in the documentation is that of the models."""

from __future__ import annotations

from rag_factory.migrate.inspection.diagram import draw_tables, place_diagram
from rag_factory.migrate.project import Project
from tests.conftest import ROOT


def test_diagram_is_up_to_date() -> None:
    before, after = place_diagram(ROOT / "docs" / "database" / "SCHEMA.md", draw_tables(Project(ROOT)))
    assert before == after, "Draw it anew: invoke db.diagram"
