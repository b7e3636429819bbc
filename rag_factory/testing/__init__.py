"""Tests on databases of their own. A project loads `rag_factory.testing.plugin` in its tests/conftest.py."""
