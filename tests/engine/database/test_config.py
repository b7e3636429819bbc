"""The settings as a whole: their values, their contradictions, and what is shown of them."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.errors import ProblemsError, RagFactoryError, SettingsError

if TYPE_CHECKING:
    from tests.engine.database.conftest import Settings

SECRET = "Zq7Xv9"
ROOT = Path(__file__).parents[3]
URL = f"postgresql://app:{SECRET}@db:5433/shop"
PARTS = {
    "DB_HOST": "db",
    "DB_PORT": "5433",
    "DB_NAME": "shop",
    "DB_USER": "app",
    "DB_PASSWORD": SECRET,
}


def problems_of(settings: Settings) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings.load()
    return str(caught.value).splitlines()


def chain(error: BaseException | None) -> list[BaseException]:
    """The error and all that it carries along."""
    found: list[BaseException] = []
    todo = [error]
    while todo:
        error = todo.pop()
        if error is not None and error not in found:
            found.append(error)
            todo += [error.__cause__, error.__context__, *getattr(error, "problems", ())]
    return found


def test_parts_make_a_url(settings: Settings) -> None:
    settings.process(**PARTS)
    config = settings.load()
    assert config.url is not None
    assert config.url.plain == URL
    assert config.read_url == config.url


def test_parts_take_any_character(settings: Settings) -> None:
    value = "a b/c:d@e?f#g%h&i=é'\"$\\"
    settings.process(DB_HOST="/run/my pg", DB_USER=value, DB_NAME=value, DB_PASSWORD=value)
    url = settings.load().url
    assert url is not None
    assert (url.host, url.user, url.database, url.password) == ("/run/my pg", value, value, value)


def test_parts_without_a_user_leave_it_to_libpq(settings: Settings) -> None:
    settings.process(DB_HOST="db")
    assert str(settings.load().url) == "postgresql://db:5432/app"


def test_a_name_alone_is_the_embedded_servers_database(settings: Settings) -> None:
    settings.process(DB_NAME="shop")
    config = settings.load()
    assert (config.url, config.db_name) == (None, "shop")


@pytest.mark.parametrize("part", ["DB_PORT", "DB_USER", "DB_PASSWORD"])
def test_parts_need_a_host(settings: Settings, part: str) -> None:
    settings.file(f"{part}={PARTS[part]}")
    (told,) = problems_of(settings)
    assert told.startswith(f"Set without DB_HOST: {part} (.env). Set DB_HOST (this machine: localhost), or")


def test_a_url_and_parts_may_agree(settings: Settings) -> None:
    settings.process(DATABASE_URL=URL, **PARTS | {"DB_HOST": "DB"})
    assert str(settings.load().url) == "postgresql://app:***@db:5433/shop"
    settings.process(DATABASE_URL=f"postgres://app:{SECRET}@[::1]/shop", DB_HOST="::1", DB_PORT="5432")
    assert str(settings.load().url) == "postgresql://app:***@[::1]/shop"


@pytest.mark.parametrize("part", PARTS)
def test_a_url_and_a_part_that_disagree_are_named(settings: Settings, part: str) -> None:
    settings.file(f"DATABASE_URL={URL}")
    other = {"DB_PORT": "5434", "DB_PASSWORD": f"{SECRET}2"}.get(part, "other")
    settings.process(**PARTS | {part: other})
    (told,) = problems_of(settings)
    assert told.startswith(f"DATABASE_URL (.env) and {part} (environment) disagree")
    assert SECRET not in told
    if part != "DB_PASSWORD":
        assert f": {PARTS[part]} in the URL, {other} in {part}." in told


def test_all_parts_that_disagree_are_told_at_once(settings: Settings) -> None:
    settings.process(DATABASE_URL="postgresql://localhost/x", **PARTS)
    told = problems_of_many(settings)
    assert [re.findall("DB_[A-Z]+", line)[0] for line in told] == list(PARTS)
    assert SECRET not in "".join(told)


def problems_of_many(settings: Settings) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        settings.load()
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_READ_URL"])
def test_a_url_names_a_database(settings: Settings, name: str) -> None:
    settings.process(**{name: f"postgresql://app:{SECRET}@db"})
    (told,) = problems_of(settings)
    assert told.startswith(f"{name} (environment) names no database: postgresql://app:***@db/.")


def test_the_test_url_may_name_a_server_only(settings: Settings) -> None:
    settings.process(TEST_DATABASE_URL="postgresql://db")
    assert str(settings.load().test_url) == "postgresql://db/"


def test_the_read_replica_is_the_primary_unless_given(settings: Settings) -> None:
    settings.process(DATABASE_URL="postgresql://db/shop")
    assert str(settings.load().read_url) == "postgresql://db/shop"
    settings.process(DATABASE_READ_URL="postgresql://replica/shop")
    assert str(settings.load().read_url) == "postgresql://replica/shop"


@pytest.mark.parametrize(
    ("text", "environment", "protected"),
    [
        ("development", "development", False),
        ("Test", "test", False),
        (" STAGING ", "staging", True),
        ("Production", "production", True),
    ],
)
def test_app_env_is_read_in_any_case(
    settings: Settings, text: str, environment: str, protected: bool
) -> None:
    settings.process(APP_ENV=text)
    config = settings.load()
    assert (config.app_env, config.protected) == (environment, protected)


WRONG = [
    ("APP_ENV", "prod", "must be 'development', 'test', 'staging' or 'production'"),
    ("DB_PORT", "0", "must be greater than or equal to 1"),
    ("DB_PORT", "65536", "must be less than or equal to 65535"),
    ("DB_PORT", "5432a", "must be a whole number"),
    ("DB_PORT", "9" * 5000, "must be a smaller number"),
    ("DB_HOST", "localhost:5433", "must be one host's name or address"),
    ("DB_HOST", "one,two", "must be one host's name or address"),
    ("DB_HOST", "relative/folder", "must be one host's name or address"),
    ("DB_HOST", "postgresql://db", "must not be a URL"),
    ("DB_NAME", "x" * 64, "must have at most 63 characters"),
    ("DB_POOL_SIZE", "0", "must be greater than or equal to 1"),
    ("DB_MAX_OVERFLOW", "-1", "must be greater than or equal to 0"),
    ("DB_POOL_TIMEOUT_SECONDS", "inf", "must be less than or equal to"),
    ("DB_CONNECT_TIMEOUT_SECONDS", "1.5", "must be a whole number"),
    ("DB_LOCK_TIMEOUT_SECONDS", "0", "must be greater than or equal to 0.001"),
    ("DB_LOCK_TIMEOUT_SECONDS", "nan", "must be"),
    ("DB_STATEMENT_TIMEOUT_SECONDS", "5s", "must be a number"),
    ("DB_STATEMENT_TIMEOUT_SECONDS", "2147484", "must be less than or equal to 2147483"),
    ("RUN_LLM_TESTS", "perhaps", "must be true or false"),
    ("BACKUP_FOLDER", "s3://bucket", "must not be a URL"),
]


@pytest.mark.parametrize(("name", "text", "requirement"), WRONG)
def test_a_wrong_value_is_told(settings: Settings, name: str, text: str, requirement: str) -> None:
    settings.file(f"{name}={text}")
    (told,) = problems_of(settings)
    assert told.startswith(f"{name} (.env) is '{text}': it {requirement}")
    assert str(DatabaseConfig.model_fields[name.lower()].description) in told


@pytest.mark.parametrize("name", ["DATABASE_URL", "DB_HOST", "DB_PASSWORD"])
def test_bytes_that_are_no_text_are_told(settings: Settings, name: str) -> None:
    settings.process(**{name: "\udcff" + SECRET})
    (told,) = problems_of(settings)
    assert "it must be UTF-8 text" in told
    told.encode()
    assert (SECRET in told) == (name == "DB_HOST")


def test_every_problem_is_told_at_once(settings: Settings) -> None:
    settings.file(f"APP_ENV=prod\nDB_USER=${{NOBODY}}\nTEST_DATABASE_URL=postgresql://app:{SECRET}@db:x/t\n")
    (settings.root / "tests" / ".env.test").write_bytes(b"\xff")
    settings.process(DATABASE_URL=f"mysql://app:{SECRET}@db/shop", DB_PORT="0", DB_POOL_SIZE="none")
    told = problems_of_many(settings)
    assert sorted(line.split()[0] for line in told) == [
        ".env",
        "APP_ENV",
        "DATABASE_URL",
        "DB_POOL_SIZE",
        "DB_PORT",
        "TEST_DATABASE_URL",
        "tests/.env.test",
    ]
    assert SECRET not in "".join(told)


def test_one_problem_makes_no_further_ones_up(settings: Settings) -> None:
    settings.process(**PARTS | {"DB_HOST": "db:5433"})
    assert len(problems_of(settings)) == 1
    settings.process(DATABASE_URL="nonsense")
    assert len(problems_of_many(settings)) == 2


@pytest.mark.parametrize(
    "given",
    [
        {"DATABASE_URL": f"postgresql://app:{SECRET}@db:x/shop"},
        {"DATABASE_URL": f"postgresql://app:{SECRET}/x@db/shop"},
        {"DATABASE_URL": f"postgresql://app:{SECRET}@db/shop?nonsense=1"},
        {"DATABASE_URL": f"\udcffpostgresql://app:{SECRET}@db/shop"},
        {"DATABASE_URL": SECRET},
        {"DB_DATABASE_URL": f"oracle://app:{SECRET}@db/shop", "DB_PASSWORD": SECRET, "DB_PORT": "x"},
        {"DB_HOST": URL},
        {"DB_NAME": URL},
        {"DB_PASSWORD": SECRET},
        {"DB_PASSWORD": SECRET, "DATABASE_URL": "postgresql://app:pw@db/shop"},
        {"DATABASE_READ_URL": f"postgresql://app:{SECRET}@db", "TEST_DATABASE_URL": SECRET},
    ],
)
@pytest.mark.filterwarnings("ignore::rag_factory.database.sources.RenamedSettingWarning")
def test_no_error_carries_a_password(settings: Settings, given: dict[str, str]) -> None:
    settings.process(**given)
    with pytest.raises(RagFactoryError) as caught:
        settings.load()
    for error in chain(caught.value):
        assert SECRET not in repr(error)
        assert SECRET not in str(error)
        assert SECRET not in repr(vars(error))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_no_form_of_the_settings_shows_a_password(settings: Settings) -> None:
    settings.process(
        DATABASE_URL=f"{URL}?sslpassword={SECRET}",
        DATABASE_READ_URL=f"postgresql://db/shop?user=app&password={SECRET}",
        TEST_DATABASE_URL=f"postgres://app:{SECRET}@db/shop_test",
        DB_PASSWORD=SECRET,
    )
    config = settings.load()
    for shown in (
        repr(config),
        str(config),
        repr(config.model_dump()),
        config.model_dump_json(),
        repr(vars(config)),
        repr(config.__pydantic_private__),
        repr(config.shown()),
    ):
        assert SECRET not in shown
    assert config.url is not None
    assert SECRET in config.url.plain


def test_shown_tells_every_setting(settings: Settings) -> None:
    settings.process(DATABASE_URL=URL, DB_PASSWORD=SECRET, DB_POOL_SIZE="7")
    config = settings.load()
    shown = config.shown()
    assert list(shown) == [name.upper() for name in DatabaseConfig.model_fields]
    assert shown["DATABASE_URL"] == "postgresql://app:***@db:5433/shop"
    assert (shown["DB_PASSWORD"], shown["DB_POOL_SIZE"], shown["DATABASE_READ_URL"]) == ("***", "7", "")


def test_examine_gives_what_is_good_and_names_what_is_not(settings: Settings) -> None:
    settings.process(DATABASE_URL=URL, DB_POOL_SIZE="x", TEST_DATABASE_URL="nonsense", DB_MAX_OVERFLOW="3")
    config, problems, doubtful = DatabaseConfig.examine(settings.root)
    assert (str(config.url), config.db_max_overflow, config.db_pool_size) == (
        "postgresql://app:***@db:5433/shop",
        3,
        5,
    )
    assert (len(problems), doubtful) == (2, frozenset({"DB_POOL_SIZE", "TEST_DATABASE_URL"}))
    assert config.origin("DB_POOL_SIZE") == "default"
    settings.file(b"\xff")
    _, _, doubtful = DatabaseConfig.examine(settings.root)
    assert "DATABASE_URL" in doubtful


def test_settings_can_not_be_changed(settings: Settings) -> None:
    config = settings.load()
    with pytest.raises(ValueError, match="frozen"):
        config.db_port = 1


def test_the_examples_hold_every_setting_and_are_right(settings: Settings) -> None:
    """All uncommented, they agree with each other and, but for the URLs, with the defaults."""
    texts = [
        (ROOT / name).read_text(encoding="utf-8") for name in (".env.example", "tests/.env.test.example")
    ]
    lines = [re.sub("^# (?=[A-Z_]+=)", "", text, flags=re.MULTILINE) for text in texts]
    names = [name for text in lines for name in re.findall("^([A-Z_]+)=", text, flags=re.MULTILINE)]
    assert sorted(names) == sorted(name.upper() for name in DatabaseConfig.model_fields)
    settings.file(lines[0])
    settings.test_file(lines[1])
    config = settings.load(for_tests=True)
    given = {
        *(name for name in names if name.endswith("_URL")),
        "DB_HOST",
        "DB_USER",
        "DB_PASSWORD",
        "HOST_IP",
    }
    differing = {
        name.upper()
        for name, field in DatabaseConfig.model_fields.items()
        if getattr(config, name) != field.default
    }
    assert differing == given | {"POSTGRES_BIN_FOLDER"}
    settings.file(texts[0])
    settings.test_file(texts[1])
    assert settings.load(for_tests=True).shown() == DatabaseConfig.model_validate({}).shown()


def test_code_under_test_does_not_see_the_developers_databases(settings: Settings) -> None:
    settings.file("DATABASE_URL=postgresql://h/real\nDB_HOST=h\nDB_POOL_SIZE=7\nAPP_ENV=production\n")
    settings.process(APP_ENV="test")
    config = settings.load()
    assert (config.url, config.db_host, config.db_pool_size) == (None, None, 7)
