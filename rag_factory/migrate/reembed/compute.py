"""Have a model compute vectors, and don't believe it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rag_factory.errors import RagFactoryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.database.embedding import Embedder

# The largest number of each type, as pgvector stores it.
LARGEST = {"vector": 3.4028234e38, "halfvec": 65504.0}
_FIX = "What is filled stays; go on when it is mended: invoke db.reembed"


def compute(
    embedder: Embedder, names: Sequence[str], texts: Sequence[str], of: str, largest: float
) -> list[str]:
    """The vectors of these texts, as pgvector reads them.

    names: of the rows, and `of` which table, for a message. largest: the largest number that can be stored.
    Raises RagFactoryError: the embedder failed, or gave something else than a vector for each text.
    """
    said = f"The embedder {embedder.name}"
    where = f"rows {names[0]} to {names[-1]} {of}"
    try:
        vectors = [[float(value) for value in row] for row in embedder.embed(texts)]
    except Exception as error:  # whatever somebody else's code raises, such as for want of a network
        what = f"{said} failed on {where}: {type(error).__name__}: {error}."
        raise RagFactoryError(what, fix=_FIX) from error
    if len(vectors) != len(texts):
        what = f"{said} gave {len(vectors)} embeddings for {len(texts)} texts, {where}."
        raise RagFactoryError(what, fix=_FIX)
    for name, vector in zip(names, vectors, strict=True):
        if fault := _find_fault(vector, embedder.dimensions, largest):
            raise RagFactoryError(f"{said} gave {fault} for row {name} {of}.", fix=_FIX)
    # Nine digits tell all float32s apart.
    return [f"[{','.join(format(value, '.9g') for value in vector)}]" for vector in vectors]


def _find_fault(vector: Sequence[float], dimensions: int, largest: float) -> str | None:
    if len(vector) != dimensions:
        return f"{len(vector)} dimensions instead of {dimensions}"
    if not all(map(math.isfinite, vector)):
        return "NaN or infinity"
    if max(map(abs, vector)) > largest:
        return f"a number beyond {largest:g}"
    return None
