"""Shards: every test in exactly one, whatever the durations file says."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import UsageError
from rag_factory.testing.shards import Shard, assign, read_durations, starts_with, write_durations
from tests.engine.testing.conftest import PYPROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.testing.conftest import Checkout

NUMBERED = """
@pytest.mark.parametrize("n", range(13))
def test_number(n):
    pass
"""


def random_id(chance: random.Random) -> str:
    return "".join(chance.choices("abc/::[]-é\udc80 \n", k=chance.randint(1, 12)))


def random_duration(chance: random.Random) -> object:
    wrong: list[object] = [-1, float("nan"), float("inf"), None, "1.0", True, [], {}, 10**400, 0]
    return chance.choice(wrong) if chance.random() < 0.3 else chance.random() * 10 ** chance.randint(-4, 2)


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_every_test_is_in_exactly_one_shard(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 50):
        check_shards(random.Random(seed), tmp_path / "durations.json")


def check_shards(chance: random.Random, path: Path) -> None:
    ids = list({random_id(chance) for _ in range(chance.randint(0, 80))})
    recorded = {id_: random_duration(chance) for id_ in ids if chance.random() < 0.7}
    recorded |= {random_id(chance): random_duration(chance) for _ in range(chance.randint(0, 20))}
    text = json.dumps(recorded)
    path.write_text(text[: chance.randint(0, len(text))] if chance.random() < 0.2 else text)
    durations = read_durations(path)
    total = chance.randint(1, 8)

    parts: list[set[str]] = [set() for _ in range(total)]
    for index in range(1, total + 1):
        chance.shuffle(ids)  # each machine collects in an order of its own
        shards = assign(ids, total, durations)
        parts[index - 1] = {id_ for id_ in ids if shards[id_] == index}

    assert set.union(*parts) == set(ids)
    assert sum(map(len, parts)) == len(ids)


@pytest.mark.parametrize("seed", range(20))
def test_shards_take_about_as_long_as_each_other(seed: int) -> None:
    chance = random.Random(seed)
    seconds = {f"test_{n}": chance.expovariate(1) for n in range(chance.randint(20, 200))}
    total = chance.randint(2, 8)
    loads = [0.0] * total
    for id_, index in assign(seconds, total, seconds).items():
        loads[index - 1] += seconds[id_]
    # The longest-first rule is never more than the longest test off.
    assert max(loads) - min(loads) <= max(seconds.values())


@pytest.mark.parametrize("durations", [{}, {"other": 1.0}, {f"test_{n}": 0.0 for n in range(100)}])
def test_shards_hold_as_many_tests_without_durations(durations: dict[str, float]) -> None:
    shards = list(assign([f"test_{n}" for n in range(100)], 3, durations).values())
    assert sorted(shards.count(index) for index in (1, 2, 3)) == [33, 33, 34]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3", "1.0/2", "½/2"])
def test_a_shard_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="I/N"):
        Shard.parse(text)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_a_broken_durations_file_holds_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    path.write_bytes(content)
    assert read_durations(path) == {}
    assert read_durations(tmp_path / "missing") == {}


def test_durations_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "durations.json"
    write_durations(path, {"b": 0.12345, "a\udc80": 1.0})
    assert read_durations(path) == {"a\udc80": 1.0, "b": 0.123}
    assert [file.name for file in path.parent.iterdir()] == ["durations.json"]


def test_the_shards_of_a_suite_are_the_suite(checkout: Checkout) -> None:
    checkout.write_test(NUMBERED)
    checkout.environment["RUN_DB_TESTS"] = "false"
    checkout.write("tests/durations.json", json.dumps({"tests/test_it.py::test_number[3]": 50, "gone": 9}))
    seen: list[str] = []
    for index, more in ((1, []), (2, ["-n", "2"]), (3, [])):
        result = checkout.pytest("--shard", f"{index}/3", *more)
        assert result.code == 0, result.output
        assert f"shard: {index}/3" in result.output
        seen += result.outcomes
    assert sorted(seen) == sorted(f"test_number[{n}]" for n in range(13))


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_shard_without_tests_is_no_failure(checkout: Checkout, workers: tuple[str, ...]) -> None:
    checkout.write_test("def test_only():\n    pass\n")
    checkout.environment["RUN_DB_TESTS"] = "false"
    results = [checkout.pytest("--shard", f"{index}/3", *workers) for index in (1, 2, 3)]
    assert sorted(len(result.outcomes) for result in results) == [0, 0, 1]
    assert [result.code for result in results] == [0, 0, 0]
    # Where nothing was chosen in the first place, no shard hides it.
    assert checkout.pytest("--shard", "1/3", "-k", "nothing", *workers).code == 5


def test_a_wrong_shard_ends_pytest(checkout: Checkout) -> None:
    checkout.write_test(NUMBERED)
    result = checkout.pytest("--shard", "4/3")
    assert result.code == 4
    assert "--shard is '4/3': it must be I/N" in result.output
    assert checkout.databases() == set()


def test_durations_are_stored_and_choose_the_workers(checkout: Checkout) -> None:
    checkout.write_test(NUMBERED)
    checkout.environment["RUN_DB_TESTS"] = "false"
    path = checkout.write("tests/durations.json", json.dumps({"tests/test_other.py::test_kept": 2.5}))
    result = checkout.pytest("--store-durations", "-n", "2")
    assert result.code == 0, result.output
    stored = read_durations(path)
    assert stored["tests/test_other.py::test_kept"] == 2.5
    assert len(stored) == 14

    assert "workers" not in checkout.pytest("-n", "auto").output  # 2.5 s are not worth one
    write_durations(path, stored | {"tests/test_other.py::test_kept": 100.0})
    several = len(os.sched_getaffinity(0)) > 1
    many = checkout.pytest("-n", "auto", "--maxprocesses", "2").output
    assert ("2 workers" in many) == several, many
    # Of what takes long, neither a part nor another file is.
    for few in (["--shard", "1/40"], ["tests/test_it.py"]):
        assert "workers" not in checkout.pytest("-n", "auto", *few).output


def test_the_last_run_chooses_the_workers(checkout: Checkout) -> None:
    checkout.write("pyproject.toml", PYPROJECT.replace('"no:cacheprovider"', '"no:stepwise"'))
    checkout.write_test(NUMBERED)
    checkout.environment["RUN_DB_TESTS"] = "false"
    several = len(os.sched_getaffinity(0)) > 1
    # Of each command line nothing is known at first.
    for arguments in ([], ["tests/test_it.py"], ["-k", "number"]):
        first = checkout.pytest("-n", "auto", "--maxprocesses", "2", *arguments)
        assert ("2 workers" in first.output) == several
        assert "workers" not in checkout.pytest("-n", "auto", *arguments).output
    assert "workers" not in checkout.pytest("-n", "auto", "./tests/test_it.py").output
    assert not (checkout.root / "tests/durations.json").exists()


@pytest.mark.parametrize(
    ("chosen", "is_in"),
    [
        ("", True), ("tests", True), ("tests/unit", True), ("tests/unit/test_it.py", True),
        ("tests/unit/test_it.py::test_one", True), ("tests/unit/test_it.py::test_one[a]", True),
        ("tests/uni", False), ("tests/unit/test_it.py::test_on", False), ("other", False),
    ],
)  # fmt: skip
def test_a_test_is_in_what_is_chosen(chosen: str, *, is_in: bool) -> None:
    assert starts_with("tests/unit/test_it.py::test_one[a]", chosen) == is_in
