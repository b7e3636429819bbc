"""Where settings come from: which source wins, how files are read, what a reference becomes."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_factory.database.sources import RenamedSettingWarning
from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import ProblemsError, SettingsError

if TYPE_CHECKING:
    from rag_factory.database.config import DatabaseConfig
    from tests.engine.database.conftest import Settings

SECRET = "Zq7Xv9"


def password(config: DatabaseConfig) -> str:
    assert config.db_password is not None
    return config.db_password.get_secret_value()


def test_nothing_set_is_the_embedded_server(settings: Settings) -> None:
    config = settings.load()
    assert config.url is config.read_url is config.test_url is None
    assert config.app_env == "development"
    assert config.origin("APP_ENV") == "default"


def test_the_process_wins_over_the_file(settings: Settings) -> None:
    settings.file("DB_POOL_SIZE=3\nDB_MAX_OVERFLOW=4\n")
    settings.process(DB_POOL_SIZE="7")
    config = settings.load()
    assert (config.db_pool_size, config.origin("DB_POOL_SIZE")) == (7, "environment")
    assert (config.db_max_overflow, config.origin("DB_MAX_OVERFLOW")) == (4, ".env")


@pytest.mark.parametrize("empty", ["", " ", "\t "])
def test_an_empty_value_is_no_value(settings: Settings, empty: str) -> None:
    settings.file("DB_POOL_SIZE=3\nDATABASE_URL=\nDB_HOST=''\nAPP_ENV\nDB_MAX_OVERFLOW=\"  \"\n")
    settings.process(DB_POOL_SIZE=empty, DB_PORT=empty, DATABASE_URL=empty, DB_DATABASE_URL=empty)
    config = settings.load()
    assert (config.db_pool_size, config.db_port, config.url, config.db_max_overflow) == (3, 5432, None, 10)


def test_white_space_around_a_value_is_ignored(settings: Settings) -> None:
    settings.file('DB_HOST = "  db "\n  DB_PORT=  5433  \n')
    settings.process(DB_USER=" app\t", RUN_LLM_TESTS=" true ", APP_ENV=" Staging\n", DB_POOL_SIZE=" 7 ")
    config = settings.load()
    assert str(config.url) == "postgresql://app@db:5433/app"
    assert (config.run_llm_tests, config.app_env, config.db_pool_size) == (True, "staging", 7)


def test_a_password_keeps_its_white_space(settings: Settings) -> None:
    settings.process(DB_HOST="db", DB_PASSWORD=f" {SECRET}\n")
    url = settings.load().url
    assert url is not None
    assert url.password == f" {SECRET}\n"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (f"DB_PASSWORD={SECRET}", SECRET),
        (f"export DB_PASSWORD={SECRET}", SECRET),
        (f"DB_PASSWORD = {SECRET}  # the one", SECRET),
        (f"DB_PASSWORD={SECRET}#no-comment", f"{SECRET}#no-comment"),
        (f'DB_PASSWORD="{SECRET} # in"  # out', f"{SECRET} # in"),
        (f"DB_PASSWORD='{SECRET} # in'  # out", f"{SECRET} # in"),
        ('DB_PASSWORD="a\\"b\\nc"', 'a"b\nc'),
        ('DB_PASSWORD="two\nlines"', "two\nlines"),
        ("DB_PASSWORD='it\\'s'", "it's"),
        ("DB_PASSWORD=a=b==", "a=b=="),
        ("DB_PASSWORD=pässwörd€", "pässwörd€"),
        ("DB_PASSWORD=one\nDB_PASSWORD=two", "two"),
        ("DB_PASSWORD=a$b$$c$HOME", "a$b$$c$HOME"),
        ("DB_PASSWORD=a${", "a${"),
        ("DB_PASSWORD=a${}b${1}c", "a${}b${1}c"),
        ("DB_PASSWORD='a${HOST_IP}b'", "a${HOST_IP}b"),
        ("export 'DB_PASSWORD' = 'a${HOST_IP}b'", "a${HOST_IP}b"),
        ('DB_PASSWORD="a${HOST_IP}b"', "a10.0.0.9b"),
    ],
)
@pytest.mark.parametrize("dress", ["plain", "crlf", "bom"])
def test_a_line_is_read_as_written(settings: Settings, line: str, value: str, dress: str) -> None:
    text = f"# settings\n\n{line}\nHOST_IP=10.0.0.9\nDB_HOST=db\n"
    if dress == "crlf":
        text = text.replace("\n", "\r\n")
    settings.file(("\ufeff" if dress == "bom" else "") + text)
    config = settings.load()
    assert password(config) == value
    assert config.url is not None
    assert config.url.password == value
    assert config.host_ip == "10.0.0.9"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f'A=1\nDB_PASSWORD="{SECRET}\n', "line 2"),
        (f"A=1\n\nDB_PASSWORD='{SECRET}\nB=2\n", "line"),
        (f"{SECRET} {SECRET}\n", "line 1"),
        (f"DB_PASSWORD={SECRET}é\n".encode("latin-1"), "byte 18 is not UTF-8"),
        (f"DB_PASSWORD={SECRET}\n".encode("utf-16"), "byte 0 is not UTF-8"),
        (f"DB_PASSWORD={SECRET}\0{SECRET}\n", "NUL"),
    ],
)
def test_a_broken_file_is_told_without_what_is_in_it(
    settings: Settings, content: str | bytes, told: str
) -> None:
    settings.file(content)
    with pytest.raises(SettingsError, match=f"^\\.env can't be read: .*{told}") as caught:
        settings.load()
    error: BaseException | None = caught.value
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    while error is not None:
        assert SECRET not in repr(error)
        error = error.__cause__ or error.__context__


def test_a_folder_in_place_of_a_file_is_told(settings: Settings) -> None:
    (settings.root / ".env").mkdir()
    (settings.root / "tests" / ".env.test").mkdir()
    with pytest.raises(ProblemsError) as caught:
        settings.load()
    told = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in sorted(told)] == [
        ".env can't be read",
        "tests/.env.test can't be read",
    ]
    assert all("Is a directory" in line and str(settings.root) in line for line in told)


def test_a_link_to_nowhere_is_told_and_a_missing_folder_is_not(settings: Settings) -> None:
    (settings.root / "tests").rmdir()
    (settings.root / "tests").write_text("")
    assert settings.load().url is None
    (settings.root / ".env").symlink_to("nowhere")
    with pytest.raises(SettingsError, match=r"^\.env can't be read: No such file"):
        settings.load()


URL = "postgresql://app:pw@${HOST_IP}:5433/shop"


@pytest.mark.parametrize("quotes", ["", '"'])
def test_host_ip_comes_from_the_process_before_the_file(settings: Settings, quotes: str) -> None:
    settings.file(f"DATABASE_URL={quotes}{URL}{quotes}\nHOST_IP=10.0.0.9\n")
    assert settings.load().url == DatabaseUrl.parse(URL.replace("${HOST_IP}", "10.0.0.9"))
    settings.process(HOST_IP="10.0.0.7")
    assert settings.load().url == DatabaseUrl.parse(URL.replace("${HOST_IP}", "10.0.0.7"))
    settings.process(HOST_IP="")
    assert settings.load().url == DatabaseUrl.parse(URL.replace("${HOST_IP}", "10.0.0.9"))


def test_a_reference_that_stays_one_is_told(settings: Settings) -> None:
    settings.file(f"DATABASE_URL='{URL}'\nHOST_IP=10.0.0.9\n")
    with pytest.raises(SettingsError, match="in a file only, and not in single quotes"):
        settings.load()
    settings.process(DATABASE_URL=URL)
    with pytest.raises(SettingsError, match="in a file only, and not in single quotes"):
        settings.load()


def test_a_reference_may_have_a_default_and_lead_to_another(settings: Settings) -> None:
    settings.file(
        "DB_HOST=${HOST_IP:-db}\nHOST_IP=${GATEWAY}\nGATEWAY=${NOT_SET:-}\n"
        "DB_NAME=${A}_${B:-b}\nA=a\nDB_USER=${A}${A}\n"
    )
    assert str(settings.load().url) == "postgresql://aa@db:5432/a_b"


def test_the_test_file_may_refer_to_what_the_main_file_sets(settings: Settings) -> None:
    settings.file("HOST_IP=10.0.0.9\nNAME=main\n")
    settings.test_file("TEST_DATABASE_URL=postgresql://${HOST_IP}/${NAME}_test\nNAME=mine\n")
    assert str(settings.load().test_url) == "postgresql://10.0.0.9/mine_test"


def test_a_value_of_the_process_is_taken_as_it_is(settings: Settings) -> None:
    settings.process(DB_HOST="db", DB_PASSWORD="a${HOST_IP}b$HOME")
    assert password(settings.load()) == "a${HOST_IP}b$HOME"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"DATABASE_URL={URL}", "DATABASE_URL uses ${HOST_IP}."),
        ("DB_HOST=${HOST_IP}", "DB_HOST uses ${HOST_IP}."),
        ("DB_HOST=${DB_HOST}", "DB_HOST uses ${DB_HOST}."),
        ("DB_HOST=${A}\nA=${B}\nB=${A}", "DB_HOST uses ${A}."),
        ("DB_HOST=${A}\nDB_USER=${B}", "DB_HOST uses ${A}, DB_USER uses ${B}."),
        (f"DB_PASSWORD=a${{{SECRET}}}b", "DB_PASSWORD uses ${…} in its password."),
        (f"DATABASE_URL=postgresql://app:a${{{SECRET}}}b@db/shop", "DATABASE_URL uses ${…} in its password."),
        (f"DATABASE_URL=postgresql://app:${{PW}}@db/shop\nPW=a${{{SECRET}}}", "uses ${…} in its password."),
    ],
)
def test_a_reference_to_nothing_is_told(settings: Settings, content: str, told: str) -> None:
    settings.file(content)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    assert told in str(caught.value)
    assert ".env refers to a variable that is not set" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_references_of_variables_that_are_not_ours_are_left_alone(settings: Settings) -> None:
    settings.file("PROMPT=${SOMEBODY_ELSES}\nDB_NAME=shop\n")
    assert settings.load().db_name == "shop"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DB_DATABASE_URL", "DATABASE_URL"),
        ("DATABASE_TEST_URL", "TEST_DATABASE_URL"),
        ("DB_TEST_DATABASE_URL", "TEST_DATABASE_URL"),
    ],
)
@pytest.mark.parametrize("source", ["environment", ".env"])
def test_an_old_name_works_with_a_warning(settings: Settings, old: str, new: str, source: str) -> None:
    text = "postgresql://db/shop"
    settings.process(**{old: text}) if source == "environment" else settings.file(f"{old}={text}")
    with pytest.warns(RenamedSettingWarning, match=rf"^{old} \({source}\) is the old name of {new}\."):
        config = settings.load()
    assert str(config.url or config.test_url) == text
    assert config.origin(new) == f"{source}, as {old}"


def test_old_and_new_name_may_agree_but_not_differ(settings: Settings) -> None:
    settings.file(
        f"DATABASE_URL=postgresql://a:{SECRET}@db/shop\nDB_DATABASE_URL=postgresql://a:{SECRET}@db/shop"
    )
    with pytest.warns(RenamedSettingWarning):
        assert settings.load().origin("DATABASE_URL") == ".env"
    settings.file(
        f"DATABASE_URL=postgresql://a:{SECRET}@db/shop\nDB_DATABASE_URL=postgresql://b:{SECRET}@db/shop"
    )
    with pytest.warns(RenamedSettingWarning), pytest.raises(SettingsError) as caught:
        settings.load()
    assert str(caught.value) == (
        "DATABASE_URL (.env) and its old name DB_DATABASE_URL (.env) disagree. Remove DB_DATABASE_URL."
    )


def test_two_old_names_of_one_setting_may_not_differ(settings: Settings) -> None:
    settings.process(DATABASE_TEST_URL="postgresql://one/", DB_TEST_DATABASE_URL="postgresql://two/")
    with (
        pytest.warns(RenamedSettingWarning),
        pytest.raises(SettingsError, match=r"DATABASE_TEST_URL.* and its old name DB_TEST_DATABASE_URL"),
    ):
        settings.load()


@pytest.mark.parametrize("in_process", ["DATABASE_URL", "DB_DATABASE_URL"])
@pytest.mark.parametrize("in_file", ["DATABASE_URL", "DB_DATABASE_URL"])
def test_the_process_wins_under_either_name(settings: Settings, in_process: str, in_file: str) -> None:
    settings.process(**{in_process: "postgresql://one/shop"})
    settings.file(f"{in_file}=postgresql://two/shop")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert str(settings.load().url) == "postgresql://one/shop"
    assert len(caught) == [in_process, in_file].count("DB_DATABASE_URL")


def test_the_test_file_counts_for_tests_only_but_for_its_url(settings: Settings) -> None:
    settings.file("DB_POOL_SIZE=3\nTEST_DATABASE_URL=postgresql://main/x_test\n")
    settings.test_file("DB_POOL_SIZE=4\nAPP_ENV=test\nTEST_DATABASE_URL=postgresql://mine/x_test\n")
    config = settings.load()
    assert (config.db_pool_size, config.app_env, str(config.test_url)) == (
        3,
        "development",
        "postgresql://mine/x_test",
    )
    assert config.origin("TEST_DATABASE_URL") == str(Path("tests/.env.test"))
    config = settings.load(for_tests=True)
    assert (config.db_pool_size, config.app_env) == (4, "test")
    assert config.origin("DB_POOL_SIZE") == str(Path("tests/.env.test"))
    settings.process(DB_POOL_SIZE="5", TEST_DATABASE_URL="postgresql://process/x_test")
    config = settings.load(for_tests=True)
    assert (config.db_pool_size, str(config.test_url)) == (5, "postgresql://process/x_test")


def test_old_names_work_in_the_test_file(settings: Settings) -> None:
    settings.test_file("DATABASE_TEST_URL=postgresql://mine/x_test\nDB_DATABASE_URL=postgresql://other/x\n")
    with pytest.warns(RenamedSettingWarning, match="DATABASE_TEST_URL"):
        config = settings.load()
    assert (str(config.test_url), config.url) == ("postgresql://mine/x_test", None)
