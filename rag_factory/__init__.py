"""RAG Factory: databases, migrations and test databases for applications on PostgreSQL and pgvector."""
