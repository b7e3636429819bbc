"""Let the site hold the pages that stand outside of docs/, and lead its links to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md", "benchmarks/README.md")
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs hands them over by name
    """Turn links between files of the repository into links between pages.

    A file that is no page is named without a link: the site can't show it.
    """
    path = page.file.src_uri
    folder = posixpath.dirname(path if path in OUTSIDE else f"docs/{path}")

    def lead(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link["target"]))
        if target not in OUTSIDE and not target.startswith("docs/"):
            return link["text"] if (ROOT / target).exists() else link[0]
        goal = target.removeprefix("docs/")
        relative = posixpath.relpath(goal, posixpath.dirname(path) or ".")
        return f"{link['picture']}[{link['text']}]({relative}{link['anchor'] or ''})"

    return _LINK.sub(lead, markdown)
