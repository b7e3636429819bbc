"""Users and their preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DataError, IntegrityError

from rag_factory.database.models import User, UserPreferences, UserRole

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def test_user_gets_its_defaults_from_the_database(db_connection: Session) -> None:
    user = User(email="ada@example.org")
    db_connection.add(user)
    db_connection.commit()
    assert (user.role, user.email_verified) == (UserRole.USER, False)
    assert user.tenant_id is None  # [tenancy]
    assert (user.display_name, user.password_hash) == (None, None)


@pytest.mark.parametrize("role", UserRole)
def test_user_keeps_its_role(db_connection: Session, role: UserRole) -> None:
    user = User(email="ada@example.org", role=role)
    db_connection.add(user)
    db_connection.commit()
    assert user.role is role
    stored = db_connection.scalar(text("SELECT role::text FROM users"))
    assert stored == role.value


def test_unknown_role_is_refused(db_connection: Session) -> None:
    with pytest.raises(DataError, match="invalid input value for enum user_role"):
        db_connection.execute(text("INSERT INTO users (email, role) VALUES ('a@b', 'client')"))
    db_connection.rollback()


def test_email_is_unique_whatever_its_case(db_connection: Session) -> None:
    db_connection.add(User(email="Ada@example.org"))
    db_connection.commit()
    db_connection.add(User(email="aDA@Example.org"))
    with pytest.raises(IntegrityError, match="uq_users_email"):
        db_connection.flush()
    db_connection.rollback()


@pytest.mark.parametrize("email", ["", "ada", "ada@", "@example.org", "a da@example.org", "a@b@c"])
def test_email_is_an_address(db_connection: Session, email: str) -> None:
    db_connection.add(User(email=email))
    with pytest.raises(IntegrityError, match="ck_users_email_is_address"):
        db_connection.flush()
    db_connection.rollback()


def test_preferences_have_defaults_and_go_with_their_user(db_connection: Session) -> None:
    user = User(email="ada@example.org")
    db_connection.add(user)
    db_connection.flush()
    preferences = UserPreferences(user_id=user.user_id)
    db_connection.add(preferences)
    db_connection.commit()
    assert (preferences.theme, preferences.language, preferences.timezone) == ("system", "en", "UTC")
    db_connection.delete(user)
    db_connection.commit()
    assert db_connection.scalars(select(UserPreferences)).all() == []


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("theme", ("light", "dark", "system"), ("", "blue")),
        ("language", ("de", "pt-BR", "zh-Hans-CN"), ("", "german", "d", "de_DE")),
        (
            "timezone",
            ("UTC", "Europe/Berlin", "America/Argentina/Ushuaia", "Etc/GMT+5"),
            ("", "Europe/", "no time"),
        ),
    ],
)
def test_preferences_are_checked(
    db_connection: Session, column: str, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    user = User(email="ada@example.org")
    db_connection.add(user)
    db_connection.flush()
    preferences = UserPreferences(user_id=user.user_id)
    db_connection.add(preferences)
    for value in good:
        setattr(preferences, column, value)
        db_connection.commit()
    for value in bad:
        setattr(preferences, column, value)
        with pytest.raises(IntegrityError, match=f"ck_user_preferences_{column}"):
            db_connection.flush()
        db_connection.rollback()
