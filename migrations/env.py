"""Tell Alembic what the models are; the engine does the rest."""

from rag_factory.database.models import FUNCTIONS, TRIGGERS, VIEWS, Base
from rag_factory.migrate.environment import run_environment

run_environment(Base.metadata, functions=FUNCTIONS, triggers=TRIGGERS, views=VIEWS)
