"""Texts, JSON and vectors as PostgreSQL receives them; what it can't store is refused here."""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from array import array
from typing import TYPE_CHECKING, Any, TypeAlias

from psycopg import ProgrammingError
from psycopg.adapt import Dumper, PyFormat
from psycopg.pq import Format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    from psycopg.abc import AdaptContext

# One axis; lists, or arrays of any number type. NumPy is not needed for lists.
Embedding: TypeAlias = "Sequence[float] | npt.NDArray[np.floating[Any] | np.integer[Any]]"

MOST_DIMENSIONS = 16_000  # that a vector can have; an index takes 2,000
# JSON's way to write NUL, if it isn't a written backslash and a u.
_JSON_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_HEADER = struct.Struct(">HH")


def encode_text(value: str) -> bytes:
    """Write a text as UTF-8. Raises ValueError: it can't be stored; says why, to follow its name."""
    if not isinstance(value, str):
        raise ValueError(f"is no text but {type(value).__name__}")
    if "\0" in value:
        raise ValueError("holds a NUL character, which PostgreSQL can't store")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half a surrogate pair, which is no character") from error


def encode_json(value: Mapping[str, Any]) -> bytes:
    """Write an object for a jsonb column. Raises ValueError: it can't be stored; as above."""
    if not value:
        return b"{}"
    try:
        encoded = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if _JSON_NUL.search(encoded):
        raise ValueError("holds a NUL character, which PostgreSQL can't store")
    return encode_text(encoded)


def encode_vector(values: Embedding, dimensions: int | None) -> bytes:
    """Write a vector as pgvector's vector_recv reads it: its length, two empty bytes, and float32s.

    dimensions: how many it must have; None for any number.
    Raises ValueError: it isn't that many finite numbers on one axis; what it is instead, to follow its name.
    """
    numbers = _encode_array(values) if hasattr(values, "astype") else _encode_list(values)
    found = len(numbers) // 4
    if dimensions is not None and found != dimensions:
        raise ValueError(f"has {found} dimensions, and chunks.embedding has {dimensions}")
    if not 1 <= found <= MOST_DIMENSIONS:
        raise ValueError(f"has {found} dimensions instead of 1 to {MOST_DIMENSIONS}")
    return _HEADER.pack(found, 0) + numbers


class BinaryVector:
    """An encoded vector as a parameter of a statement, to be cast there: %(vector)s::vector."""

    __slots__ = ("encoded",)

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded


class _BinaryVectorDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: BinaryVector) -> bytes:
        return obj.encoded


def accept_vectors(connection: AdaptContext) -> None:
    """Have this connection take BinaryVectors as parameters."""
    adapters = connection.adapters
    assert adapters is not None  # noqa: S101 - a connection always has them
    try:
        adapters.get_dumper(BinaryVector, PyFormat.AUTO)
    except ProgrammingError:
        # Once for each connection: every registration has the next cursor copy all of them.
        adapters.register_dumper(BinaryVector, _BinaryVectorDumper)


def _encode_list(values: Any) -> bytes:
    try:
        if isinstance(values, bytes | bytearray):  # they would be read as what memory holds
            raise TypeError
        numbers = array("f", values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("is not a sequence of numbers") from error
    if not math.isfinite(sum(numbers)):  # as doubles, which float32s can't overflow
        raise ValueError("holds NaN or infinity")
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


def _encode_array(values: Any) -> bytes:
    import numpy as np

    if values.ndim != 1:
        raise ValueError(f"has {values.ndim} axes instead of one")
    numbers = values
    if values.dtype != np.float32:
        try:
            with np.errstate(over="ignore"):  # becomes infinity, which is found next
                numbers = values.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError("is not an array of numbers") from error
    if not np.isfinite(numbers).all():
        raise ValueError("holds NaN or infinity")
    encoded: bytes = numbers.astype(">f4").tobytes()
    return encoded
