"""Worker databases by Django's test runner, called as pytest-django calls it.

Arguments: host, port and user of the server, the number of this worker. Runs in the folder of the app.
"""

from __future__ import annotations

import sys
from typing import Any

import django  # type: ignore[import-not-found]
from django.conf import settings  # type: ignore[import-not-found]
from django.db import connection  # type: ignore[import-not-found]
from django.test.utils import (  # type: ignore[import-not-found]
    setup_databases,
    teardown_databases,
)

from benchmarks.peers.member import serve

made: list[Any] = []


def create(name: str, *, keep: bool) -> None:
    """Create a database and migrate it; keep: as with --keepdb and --reuse-db, one that is there is used."""
    connection.settings_dict["TEST"]["NAME"] = f"{name}_{sys.argv[4]}"
    made.append(
        setup_databases(
            verbosity=0, interactive=False, aliases={"default"}, serialized_aliases=set(), keepdb=keep
        )
    )


def clone(number: int) -> None:
    """Clone it, as `manage.py test --parallel` does between the migrations and the tests."""
    for index in range(number):
        connection.creation.clone_test_db(suffix=str(index + 1), verbosity=0)


def end(*, keep: bool, clones: int = 0) -> None:
    """Forget the database, and unless it is kept, drop it and its clones."""
    teardown_databases(made.pop(), verbosity=0, keepdb=keep, parallel=clones)


if __name__ == "__main__":
    sys.path.insert(0, "")
    host, port, user, _ = sys.argv[1:]
    server = {"HOST": host, "PORT": port, "USER": user}
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "shop", **server}},
        INSTALLED_APPS=["shop"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()
    serve({"create": create, "clone": clone, "end": end})
