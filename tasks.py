"""The project's tasks: the engine's, and its own. See them: invoke --list."""

from pathlib import Path

from rag_factory.services.tasks import TASKS
from rag_factory.tasks import build_namespace

namespace = build_namespace(Path(__file__).parent, db_tasks=TASKS)
