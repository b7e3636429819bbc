"""Turn texts into embeddings: what a model must offer, and one that needs no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from hashlib import blake2b
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rag_factory.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

# One row for each text; lists, or a matrix of float32.
Embeddings: TypeAlias = "Sequence[Sequence[float]] | npt.NDArray[np.floating[Any]]"


class Embedder(Protocol):
    """What computes embeddings; a model plugs in by a class like this.

    name: of model and version. Texts that another one embedded are embedded anew.
    dimensions: the length of each embedding, that of chunks.embedding.
    """

    name: str
    dimensions: int

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Compute the embeddings, shape (len(texts), dimensions), finite; the same text gives the same."""


def load_embedder(name: str, said: str) -> Embedder:
    """Make the embedder of this name, `package.module:Class`; the class takes no arguments.

    said: what names it, as the beginning of a sentence. Raises SettingsError: there is none of that name, or
    it can't be made.
    """
    try:
        module, _, attribute = name.partition(":")
        embedder: Embedder = getattr(import_module(module), attribute)()
        # Asked for here: a class that lacks one of them is no embedder.
        _ = embedder.dimensions, embedder.name, embedder.embed
    except Exception as error:  # whatever somebody else's code raises, such as for want of a key
        raise SettingsError(
            f"{said}, which can't be made: {error}.",
            fix="Name a class that takes no arguments, like app.embedding:MyEmbedder.",
        ) from error
    return embedder


class OfflineEmbedder:
    """Embeds by the words that a text holds: no model, no network, the same on every machine.

    Texts are near each other when they share words, their stems, or parts of them. It knows no meaning, so it
    is for trying things out and for tests. Each feature is added to the place that its hash names, with the
    sign that it names: https://doi.org/10.1145/1553374.1553516

    dimensions: 1 or more; with few, texts that share nothing are near each other as well.
    """

    name = "offline-1"

    def __init__(self, dimensions: int) -> None:
        if dimensions < 1:
            raise UsageError(f"dimensions is {dimensions}, and must be 1 or more.")
        self.dimensions = dimensions

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Compute the embeddings, each of length 1."""
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> list[float]:
        vector = [0.0] * self.dimensions
        # Of a text without a word, the text itself is the one feature: no vector may be all zeros.
        for feature, weight in _weigh(text) or [(text, 1.0)]:
            digest = int.from_bytes(blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest())
            vector[(digest >> 1) % self.dimensions] += weight if digest & 1 else -weight
        length = math.sqrt(math.fsum(value * value for value in vector))
        # Two features that cancel each other out are improbable, and still must not divide by zero.
        return [value / length for value in vector] if length else [1.0, *vector[1:]]


# Words that nearly every text holds say nothing of what it is about.
COMMON = (
    "a an and are as at be by can do does for from has have how i if in is it its me my not of on one or "
    "our so that the them then there they this to us was we what when where which who why will with you your"
)
_COMMON = frozenset(COMMON.split())
_WORD = re.compile(r"[^\W_]+")
_ENDINGS = ("ations", "ation", "ings", "ing", "ers", "ied", "ies", "ed", "es", "er", "s", "e")
SHORTEST_STEM = 3
PARTS = 4  # characters of a part of a word, by which "migrate" is near "migration"
PART_WEIGHT, PAIR_WEIGHT = 0.3, 0.7


def _weigh(text: str) -> list[tuple[str, float]]:
    """The features of a text, and how much each counts: the first time most."""
    counts: Counter[tuple[str, float]] = Counter(_features(text))
    return [(feature, weight * (1 + math.log(count))) for (feature, weight), count in counts.items()]


def _features(text: str) -> Iterator[tuple[str, float]]:
    before = ""
    for word in _WORD.findall(text.lower()):
        if word in _COMMON:
            continue
        stem = _stem(word)
        yield stem, 1.0
        if before:
            yield f"{before} {stem}", PAIR_WEIGHT
            # "roll back" is near "rollback".
            yield before + stem, PAIR_WEIGHT
        for start in range(len(word) - PARTS + 1):
            yield f"~{word[start : start + PARTS]}", PART_WEIGHT
        before = stem


def _stem(word: str) -> str:
    """The word without its ending, roughly."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM:
            return word.removesuffix(ending)
    return word
