"""The embedder that needs no model: always the same, always a direction, and near what shares its words."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rag_factory.database.embedding import OfflineEmbedder
from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from rag_factory.database.embedding import Embedder

DIMENSIONS = 256
EMBEDDER: Embedder = OfflineEmbedder(DIMENSIONS)
TEXT = "How do I roll back a migration? Zurückrollen: invoke db.rollback --to 024"


def embed(text: str) -> list[float]:
    [vector] = EMBEDDER.embed([text])
    return list(vector)


def cosine(one: str, other: str) -> float:
    return math.fsum(a * b for a, b in zip(embed(one), embed(other), strict=True))


@pytest.mark.parametrize("seed", ["0", "1"])
def test_embedding_is_the_same_in_every_process(seed: str) -> None:
    code = (
        "import sys; from rag_factory.database.embedding import OfflineEmbedder;"
        f" print(OfflineEmbedder({DIMENSIONS}).embed([sys.argv[1]])[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, TEXT],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(embed(TEXT))


# A busy machine is no failure.
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=()), max_size=50))
@example("")
@example(" \n")
@example("?!")
@example("_")
@example("\0")
@example("\ud800")
@example("the")
@example("İ ß ﬁ")
def test_embedding_of_any_text_is_a_direction(text: str) -> None:
    vector = embed(text)
    assert len(vector) == DIMENSIONS
    assert math.hypot(*vector) == pytest.approx(1)
    assert embed(text) == vector


@pytest.mark.parametrize("text", ["word " * 100_000, "w" * 300_000, " ".join(map(str, range(30_000)))])
def test_embedding_of_a_long_text_is_a_direction(text: str) -> None:
    assert math.hypot(*embed(text)) == pytest.approx(1)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_features_that_cancel_each_other_out_leave_a_direction(dimensions: int) -> None:
    texts = [f"a{number} b{number}" for number in range(200)]
    for vector in OfflineEmbedder(dimensions).embed(texts):
        assert math.hypot(*vector) == pytest.approx(1)


def test_each_text_has_its_row_whatever_the_others() -> None:
    assert EMBEDDER.embed([]) == []
    assert EMBEDDER.embed([TEXT, "", TEXT]) == [embed(TEXT), embed(""), embed(TEXT)]


@pytest.mark.parametrize("near", ["rollback", "db.rollback", "Rolled back.", "rolling back the schema"])
@pytest.mark.parametrize("far", ["Several tenants in one database", "a binary COPY", "", "the"])
def test_text_is_nearer_to_what_shares_its_words(near: str, far: str) -> None:
    assert cosine("roll back", near) > cosine("roll back", far) + 0.2


def test_common_words_do_not_count() -> None:
    assert embed("How do I roll back?") == embed("roll back")


def test_no_dimensions_are_refused() -> None:
    with pytest.raises(UsageError, match="dimensions is 0"):
        OfflineEmbedder(0)
