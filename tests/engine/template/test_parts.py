"""Leaving parts out, and what is done to imports then."""

from __future__ import annotations

import pytest

from rag_factory.template.imports import drop_unused, sort_imports
from rag_factory.template.parts import leave_out

KNOWN = {"chat", "audit"}
PYTHON = '''
import one  # [chat]
from two import (
    three,  # [chat]
    four,
)


# [chat
def five() -> int:
    """Five."""
    return 5


# chat]


@six(  # [audit]
    6,
)
def seven() -> int:
    if four:  # [chat]
        return 7
    return eight(  # [audit, chat]
        8,
    )


nine = [10]  # [other]
'''


def test_nothing_left_out_leaves_no_marker() -> None:
    text = leave_out(PYTHON, (), known=KNOWN, python=True)
    assert "chat" not in text
    assert "audit" not in text
    assert text.count("\n\n\n\n") == 0
    assert "\n)\n\n\ndef five" in text


def test_what_begins_on_a_marked_line_goes_to_its_end() -> None:
    text = leave_out(PYTHON, {"chat"}, known=KNOWN, python=True)
    assert text == (
        "\nfrom two import (\n    four,\n)\n\n\n@six(\n    6,\n)\ndef seven() -> int:\n\n\n"
        "nine = [10]  # [other]\n"
    )
    text = leave_out(PYTHON, {"audit"}, known=KNOWN, python=True)
    assert "seven" not in text
    assert "def five" in text


def test_markdown_and_settings_have_the_same_markers() -> None:
    text = "# Title\n- a <!-- [chat] -->\n- b\n<!-- [audit -->\nc\n<!-- audit] -->\n# [chat\nd\n# chat]\n"
    assert leave_out(text, {"chat"}, known=KNOWN, python=False) == "# Title\n- b\nc\n"
    assert leave_out(text, {"audit"}, known=KNOWN, python=False) == "# Title\n- a\n- b\nd\n"


def test_part_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"line 2 opens a part that nothing closes: # \[chat"):
        leave_out("a = 1\n# [chat\nb = 2\n", {"chat"}, known=KNOWN, python=True)


def test_imports_that_nothing_uses_any_more_go() -> None:
    before = (
        "from typing import TYPE_CHECKING\n\nimport kept_unused\nfrom a import b, c\n\n"
        "if TYPE_CHECKING:\n    from d import e\n\n\nf: 'e' = b(c)\n"
    )
    after = before.replace("f: 'e' = b(c)", "b()")
    assert drop_unused(after, before) == "\nimport kept_unused\nfrom a import b\n\n\nb()\n"


def test_imports_are_sorted_and_wrapped() -> None:
    names = [f"name_{number}" for number in range(12)]
    text = (
        f"from __future__ import annotations\n\nimport os\nfrom app.b import {', '.join(names)}\nimport zoo\n"
    )
    wrapped = "from app.b import (\n" + "".join(f"    {name},\n" for name in names) + ")\n"
    assert sort_imports(text, {"app"}) == (
        f"from __future__ import annotations\n\nimport os\n\nimport zoo\n\n{wrapped}"
    )
