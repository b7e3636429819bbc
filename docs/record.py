"""Record the tour that the README shows: run it for real, and write what it printed as a picture.

Run it: uv run python -m docs.record
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rag_factory.server import EmbeddedServer

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "tour.svg"
PARTS = ("tasks.py", "alembic.ini", "pyproject.toml", "migrations")
WIDTH = 112
# Of a long output, its first and its last lines.
MOST_LINES = 9
REVISION = '''"""find documents by their file

Revision ID: 029
Revises: 028
"""

from alembic import op

revision = "029"
down_revision = "028"


def upgrade() -> None:
    op.create_index("idx_documents_filename", "documents", ["filename"])


def downgrade() -> None:
    op.drop_index("idx_documents_filename")
'''
TOUR = (
    "invoke db.migrate",
    "# a revision as one writes it at first; any lock that is held at all shall be told",
    "invoke db.plan --short 0",
)


def main() -> None:
    """Run the tour in a copy of the project, with a server of its own."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, home / part)
        try:
            for command in TOUR:
                if command.startswith("#"):
                    (home / "migrations" / "versions" / "029_file_index.py").write_text(REVISION)
                    console.print(Text(command, style="bright_black"))
                else:
                    console.print(Text.assemble(("$ ", "green"), (command, "bold")))
                    console.print(Text(run(command, home)))
        finally:
            EmbeddedServer(home / ".rag_factory" / "server").stop()
    PICTURE.parent.mkdir(exist_ok=True)
    picture = console.export_svg(title="RAG Factory", unique_id="tour")
    # Its fonts would be fetched from elsewhere; every reader has one for terminals.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL), encoding="utf-8")


def run(command: str, home: Path) -> str:
    """Run a command of this environment. Returns what it printed, shortened in the middle."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": os.environ["HOME"],
        "COLUMNS": str(WIDTH),
    }
    done = subprocess.run(
        command.split(),
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    lines = done.stdout.replace(f"{home}{os.sep}", "").rstrip().splitlines()
    if len(lines) > MOST_LINES + 2 and "plan" not in command:
        lines = [*lines[: MOST_LINES // 2 + 1], "…", *lines[-(MOST_LINES // 2) + 1 :]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
