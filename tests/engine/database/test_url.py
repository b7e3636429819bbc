"""Every spelling of a database's address, and no password in what is shown of it."""

from __future__ import annotations

import traceback
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import make_url

from rag_factory.database.url import DatabaseUrl, mask
from rag_factory.errors import SettingsError

SECRET = "Zq7Xv9"  # what no message may hold any piece of
HOSTS = (
    "db.example.com",
    "under_score",
    "127.0.0.1",
    "::1",
    "fe80::1%eth0",
    "münchen.example",
    "/var/run/postgresql",
    "/tmp/with space/it's",
)


def read_by_sqlalchemy(url: DatabaseUrl) -> dict[str, str]:
    address = make_url(url.sqlalchemy)
    _, arguments = address.get_dialect()().create_connect_args(address)
    return {name: str(value) for name, value in arguments.items() if name != "context"}


@pytest.mark.parametrize(
    "scheme",
    [
        "postgres",
        "postgresql",
        "postgresql+asyncpg",
        "postgresql+psycopg2",
        "postgresql+psycopg",
        "POSTGRES",
        "PostgreSQL+AsyncPG",
    ],
)
def test_every_scheme_is_read_as_psycopg_3(scheme: str) -> None:
    url = DatabaseUrl.parse(f"{scheme}://app:pw@db:5433/shop")
    assert url.sqlalchemy == "postgresql+psycopg://app:pw@db:5433/shop"
    assert url.plain == "postgresql://app:pw@db:5433/shop"


@pytest.mark.parametrize("character", [chr(code) for code in range(1, 128)] + ["é", "€", "😀", "\u2100"])
def test_any_character_of_a_password_survives(character: str) -> None:
    password = f"{character}a{character}{character}b{character}"
    wanted = {"host": "db", "port": "5433", "dbname": "shop", "user": "app", "password": password}
    for text in (
        f"postgresql://app:{quote(password, safe='')}@db:5433/shop",
        f"postgresql://app@db:5433/shop?password={quote(password, safe='')}",
    ):
        url = DatabaseUrl.parse(text)
        assert conninfo_to_dict(url.plain) == wanted
        assert conninfo_to_dict(make_conninfo(**url.libpq)) == wanted
        assert read_by_sqlalchemy(url) == wanted
        assert DatabaseUrl.parse(url.plain) == url
        assert DatabaseUrl.parse(url.sqlalchemy) == url
        assert url.masked == "postgresql://app:***@db:5433/shop"


@pytest.mark.parametrize("character", [*"!$&'()*+,-.:;=@_`{|}~^<>\"\\%", "é", "%zz", "%2"])
def test_a_password_need_not_be_escaped_where_it_is_clear(character: str) -> None:
    url = DatabaseUrl.parse(f"postgresql://app:{SECRET}{character}{SECRET}@db/shop")
    assert url.password == f"{SECRET}{character}{SECRET}"
    assert (url.host, url.database) == ("db", "shop")


def test_special_characters_survive_in_user_and_database() -> None:
    value = "a b/c:d@e?f#g%h&i=é'\""
    url = DatabaseUrl(host="db", user=value, database=value)
    assert DatabaseUrl.parse(url.plain) == url
    assert conninfo_to_dict(url.plain) == {"host": "db", "user": value, "dbname": value}
    assert read_by_sqlalchemy(url) == {"host": "db", "user": value, "dbname": value}


@pytest.mark.parametrize("port", [None, 6543])
@pytest.mark.parametrize("host", HOSTS)
def test_any_host_is_read_alike_by_all(host: str, port: int | None) -> None:
    url = DatabaseUrl(host=host, port=port, database="shop", user="app", password="pw")
    wanted = {"host": host, "dbname": "shop", "user": "app", "password": "pw"}
    wanted |= {"port": str(port)} if port else {}
    assert conninfo_to_dict(url.plain) == wanted
    assert conninfo_to_dict(make_conninfo(**url.libpq)) == wanted
    assert read_by_sqlalchemy(url) == wanted
    assert DatabaseUrl.parse(url.plain) == url


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("postgresql://db/shop", "db", None),
        ("postgresql://DB.Example.COM/shop", "db.example.com", None),
        ("postgresql://db:/shop", "db", None),
        ("postgresql:///shop", "", None),
        ("postgresql://app@/shop?host=/run/pg&port=6000", "/run/pg", 6000),
        ("postgresql://%2FRun%2FPG:6000/shop", "/Run/PG", 6000),
        ("postgresql://localhost:5433/shop?host=/run/pg", "/run/pg", 5433),
        ("postgresql://[::1]:5433/shop", "::1", 5433),
        ("postgresql://[fe80::1%25eth0]/shop", "fe80::1%eth0", None),
        ("postgresql:///shop?host=/a&port=5432&host=/b", "/b", 5432),
    ],
)
def test_host_and_port_are_found(text: str, host: str, port: int | None) -> None:
    url = DatabaseUrl.parse(text)
    assert (url.host, url.port, url.database) == (host, port, "shop")
    read = conninfo_to_dict(text.lower() if "DB" in text else text)
    assert (read.get("host", ""), read.get("port")) == (host, str(port) if port else None)


def test_an_option_wins_over_the_same_thing_in_the_address() -> None:
    text = "postgresql://a:b@c:1/d?user=app&password=pw&host=db&port=5433&dbname=shop"
    url = DatabaseUrl.parse(text)
    assert url == DatabaseUrl(host="db", port=5433, database="shop", user="app", password="pw")
    assert url.libpq == conninfo_to_dict(text)


def test_options_are_kept_for_all_readers() -> None:
    text = "postgresql://db/shop?sslmode=require&options=-c%20search_path%3Drag&application_name=a+b%26c"
    options = {"sslmode": "require", "options": "-c search_path=rag", "application_name": "a+b&c"}
    url = DatabaseUrl.parse(text)
    assert url.options == options
    wanted = {"host": "db", "dbname": "shop", **options}
    assert conninfo_to_dict(text) == conninfo_to_dict(url.plain) == url.libpq == wanted
    assert read_by_sqlalchemy(url) == wanted


@pytest.mark.parametrize(
    ("ssl", "sslmode"), [("require", "require"), ("true", "require"), ("False", "disable")]
)
def test_the_ssl_option_of_asyncpg_is_understood(ssl: str, sslmode: str) -> None:
    assert DatabaseUrl.parse(f"postgresql+asyncpg://db/shop?ssl={ssl}").options == {"sslmode": sslmode}


def test_white_space_around_a_url_is_ignored() -> None:
    assert DatabaseUrl.parse(" \tpostgresql://db/shop\r\n") == DatabaseUrl(host="db", database="shop")


MALFORMED = {
    "": "does not start with",
    "shop": "does not start with",
    f"{SECRET}": "does not start with",
    f"app:{SECRET}@db/shop": "does not start with",
    f"host=db password={SECRET}": "does not start with",
    f"postgresql:/app:{SECRET}@db/shop": "does not start with",
    f"mysql://app:{SECRET}@db/shop": "does not start with",
    f"app:{SECRET}@postgresql://db/shop": "does not start with",
    f"DATABASE_URL=postgresql://app:{SECRET}@db/shop": "does not start with",
    f"'postgresql://app:{SECRET}@db/shop'": "does not start with",
    f"postgresql://app:{SECRET} {SECRET}@db/shop": "white space",
    f"postgresql://app:{SECRET}\n{SECRET}@db/shop": "white space",
    f"postgresql://app:{SECRET}@db/shop\x1b[2J": "white space",
    f"postgresql://app:{SECRET}\0{SECRET}@db/shop": "white space",
    f"postgresql://app:{SECRET}%00@db/shop": "NUL",
    f"postgresql://db/shop?password={SECRET}%00": "NUL",
    f"postgresql://app:{SECRET}%ff@db/shop": "not that of UTF-8",
    f"postgresql://db/shop?password={SECRET}%ff": "not that of UTF-8",
    f"postgresql://app:{SECRET}@db:99999/shop": "port",
    f"postgresql://app@db:{SECRET}/shop": "port",
    f"postgresql://app:{SECRET}@db:0/shop": "port",
    f"postgresql://app:{SECRET}@db:-1/shop": "port",
    f"postgresql://app:{SECRET}@db:54x2/shop": "port",
    f"postgresql://app:{SECRET}@db:\u0661\u0662/shop": "port",
    f"postgresql://app:{SECRET}@db:{'9' * 5000}/shop": "port",
    f"postgresql://app:{SECRET}@/shop?host=/run&port=": "port",
    f"postgresql://app:{SECRET}@/shop?host=/run&port=99999": "port",
    f"postgresql://app:{SECRET}@/shop?host=/run&port={'9' * 5000}": "port",
    f"postgresql://app:{SECRET}/{SECRET}@db/shop": "port",
    f"postgresql://app:{SECRET}?{SECRET}@db/shop": "port",
    f"postgresql://app:{SECRET}#{SECRET}@db/shop": "port",
    f"postgresql://app:12/{SECRET}@db/shop": "told apart",
    f"postgresql://app:12?{SECRET}@db/shop": "told apart",
    f"postgresql://app:12?user={SECRET}@db/shop": "told apart",
    f"postgresql://app:12#{SECRET}@db/shop": "#",
    f"postgresql://app:{SECRET}[{SECRET}@db/shop": "told apart",
    f"postgresql://app:{SECRET}\u2100{SECRET}@db/shop": "told apart",
    f"postgresql://app:{SECRET}@db/shop#fragment": "#",
    f"postgresql://app:{SECRET}@db/shop#": "#",
    f"postgresql://app:{SECRET}@one,two/shop": "several hosts",
    f"postgresql://app:{SECRET}@/shop?host=/one,/two": "several hosts",
    f"postgresql://db/shop?sslmode=require;password={SECRET}": "parted by ;",
    f"postgresql://db/shop?PASSWORD={SECRET}": "option that",
    f"postgresql://db/shop?password=12&{SECRET}": "option that",
    f"postgresql://db/shop?password=12&{SECRET}=34": "option that",
    f"postgresql://app:{SECRET}@db/shop?sslmod=require": "option 'sslmod' that",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_url_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(SettingsError, match=f"^DATABASE_URL is malformed: .*{MALFORMED[text]}") as caught:
        DatabaseUrl.parse(text, name="DATABASE_URL")
    assert caught.value.__cause__ is caught.value.__context__ is None
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in told
    assert SECRET.lower() not in told
    message = str(caught.value)
    assert message.isprintable()
    assert "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in message


def test_mask_shows_what_is_no_secret() -> None:
    assert mask(f"postgresql://app:{SECRET}@{SECRET}@db:54/shop") == "postgresql://app:***@db:54/shop"
    assert mask(f"postgresql://app@[::1]:{SECRET}/{SECRET}") == "postgresql://app@[::1]:***"
    assert mask(f"postgresql://app@db:{SECRET}/{SECRET}") == "postgresql://app@db:***"
    assert mask("postgresql://db:x") == "postgresql://db:***"
    assert mask("postgresql://db/shop") == "postgresql://db/shop"
    assert mask(f"postgresql://db/shop?password={SECRET}&x") == "postgresql://db/shop?***"
    assert mask(SECRET) == "***"


def test_only_the_writers_for_machines_hold_secrets() -> None:
    url = DatabaseUrl.parse(
        f"postgresql://app:{SECRET}@db/shop?sslpassword={SECRET}&oauth_client_secret={SECRET}&sslmode=require"
    )
    for text in (repr(url), str(url), f"{url}", url.masked, url.server, repr([url])):
        assert SECRET not in text
    bare = url.without_password()
    assert SECRET not in bare.plain
    assert bare.options == {"sslmode": "require"}
    assert url.plain.count(SECRET) == url.sqlalchemy.count(SECRET) == 3
    assert "sslpassword=***" in url.masked


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql://localhost/shop", "postgres://127.0.0.1:5432/shop", True),
        ("postgresql://[::1]/shop", "postgresql://a:b@LOCALHOST/shop?sslmode=prefer", True),
        ("postgresql:///shop?host=db", "postgresql://DB/shop", True),
        ("postgresql://db/shop?hostaddr=127.0.0.1", "postgresql://localhost/shop", True),
        ("postgresql://localhost/shop", "postgresql://localhost/shop_test", False),
        ("postgresql://localhost/shop", "postgresql://localhost:5433/shop", False),
        ("postgresql://localhost/shop", "postgresql://db/shop", False),
        ("postgresql:///shop?host=/a", "postgresql:///shop?host=/b", False),
    ],
)
def test_same_database_sees_through_spellings(one: str, other: str, same: bool) -> None:
    assert DatabaseUrl.parse(one).same_database(DatabaseUrl.parse(other)) is same


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("postgresql:///shop", "localhost:5432"),
        ("postgresql://[::1]:5433/shop", "[::1]:5433"),
        ("postgresql:///shop?host=/run/pg&port=6000", "/run/pg"),
    ],
)
def test_server_names_the_place(text: str, server: str) -> None:
    assert DatabaseUrl.parse(text).server == server
