"""What the engine keeps in a database for itself: a schema of its own, away from the project's tables."""

from __future__ import annotations

SCHEMA = "rag_factory"
# Left out wherever schemas are compared or copied; the second one is in test databases only.
OWN_SCHEMAS = (SCHEMA, "rag_factory_testing")
