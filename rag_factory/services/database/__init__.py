"""The database as a service."""
