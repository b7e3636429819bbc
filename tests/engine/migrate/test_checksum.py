"""The checksum of a revision: what it does counts, how it is written doesn't."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rag_factory.migrate.checksum import checksum

if TYPE_CHECKING:
    from pathlib import Path

TEXT = '''"""add a column"""
revision = "1"

def upgrade():
    """Go up."""
    op.add_column("t", sa.Column("c", sa.Text(), nullable=None))  # why
'''
SAME = {
    "docstrings": TEXT.replace("add a column", "something else").replace('    """Go up."""\n', ""),
    "comments": TEXT.replace("  # why", "").replace("revision", "# here\nrevision", 1),
    "formatting": TEXT.replace('"t", ', "'t',\n        ").replace("nullable=None)", "nullable=None,)"),
}
OTHER = {
    "a text": TEXT.replace('"c"', '"d"'),
    "a value": TEXT.replace("None", "False"),
    "a call": TEXT.replace("sa.Text()", "sa.Integer()"),
    "an argument": TEXT.replace(", nullable=None", ""),
    "the order": TEXT.replace('revision = "1"\n', "") + 'revision = "1"\n',
}


def _checksum(folder: Path, text: str) -> str:
    path = folder / "revision.py"
    path.write_text(text)
    return checksum(path)


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_writing_does_not_count(tmp_path: Path, text: str) -> None:
    assert text != TEXT
    assert _checksum(tmp_path, text) == _checksum(tmp_path, TEXT)


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_doing_counts(tmp_path: Path, text: str) -> None:
    assert text != TEXT
    assert _checksum(tmp_path, text) != _checksum(tmp_path, TEXT)


def test_it_is_the_same_in_each_version_of_python(tmp_path: Path) -> None:
    # By Python 3.11, 3.12 and 3.13 alike. Another number would tell each database that all was edited.
    assert _checksum(tmp_path, TEXT).startswith("4bfe1cfd68312939")
