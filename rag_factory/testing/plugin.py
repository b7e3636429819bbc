"""The pytest plug-in. tests/conftest.py loads it: `pytest_plugins = ["rag_factory.testing.plugin"]`.

Its imports are the cost of every start, so the parts that only some runs need are imported inside the hooks.
"""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.database.sources import NAMES, OLD_NAMES
from rag_factory.errors import RagFactoryError
from rag_factory.testing.fixtures import *  # noqa: F403 - pytest finds fixtures among the plug-in's names
from rag_factory.testing.fixtures import CHECKED, DATABASE_FIXTURES, HELD, RUN, judge
from rag_factory.testing.place import check_place
from rag_factory.testing.run import GROUPS, Run, begin_run
from rag_factory.testing.settings import read_test_settings

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from rag_factory.testing.shards import Shard

DURATIONS = Path("tests/durations.json")
# In pytest's cache, the seconds that the tests of a command line took.
CACHE = "rag_factory/seconds"
COMMAND_LINES = 50
# A worker is worth its start when there is this much to do for each.
SECONDS_PER_WORKER = 4.0
# What pytest is asked when it shows something rather than runs tests.
LOOKS = (
    "collectonly", "help", "version", "showfixtures", "show_fixtures_per_test", "markers", "cacheshow",
    "setupplan",
)  # fmt: skip
_PATCH = pytest.StashKey[pytest.MonkeyPatch]()
# Whether the shard has none of the tests that were chosen, as when there are fewer tests than shards.
_EMPTY_SHARD = pytest.StashKey[bool]()
# By it a worker says so.
EMPTY_SHARD = "rag_factory_empty_shard"
# Where the fixtures are that touch no database but as we know; and those that call a project's own code.
PLUGINS = ("_pytest.", "pytest_asyncio.", "rag_factory.testing.")
ON_BEHALF = ("_pytest.python", "_pytest.unittest")
# The names of fixtures that touch no database but as we know, and of those that outlive a test.
_HARMLESS = pytest.StashKey[set[str]]()
_WIDER = pytest.StashKey[set[str]]()
# Whether the garbage collector was on before the run began.
_COLLECTOR = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("rag-factory")
    group.addoption("--shard", metavar="I/N", help="run only part I of N; every test is in exactly one part")
    group.addoption(
        "--store-durations",
        action="store_true",
        help=f"write how long each test took to {DURATIONS}, which balances shards and chooses workers",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin the run: in the controller by `begin_run`, in a worker by what the controller hands over.

    The garbage collector rests until the tests begin. It would go again and again through all that is
    imported until then, which lives as long as the run: a seventh of the time that it takes to import.
    """
    config.stash[_COLLECTOR] = gc.isenabled()
    gc.disable()
    config.addinivalue_line("markers", "db: needs a database (set by itself from the fixtures)")
    config.addinivalue_line("markers", "integration: an integration test (set by itself from the folder)")
    config.addinivalue_line("markers", "llm: calls a language model")
    patch = config.stash[_PATCH] = pytest.MonkeyPatch()
    given = getattr(config, "workerinput", None)
    if given is not None:
        # The settings are hidden already: a worker has the environment of its controller.
        if "rag_factory" in given:
            config.stash[RUN] = Run.from_data(config.rootpath, given["rag_factory"])
    else:
        _begin(config, patch)
        if not _only_looks(config):
            config.pluginmanager.register(_Recorder(config))
    if RUN in config.stash and "db" in config.stash[RUN].off:
        from rag_factory.testing.sockets import close_sockets

        close_sockets(patch, config.stash[RUN].off["db"])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the leases, and give the environment back."""
    _wake_collector(config)
    if RUN in config.stash:
        config.stash[RUN].close()
    if _PATCH in config.stash:
        os.environ.pop("DATABASE_URL", None)
        config.stash[_PATCH].undo()


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which server, template and databases the tests run on."""
    run = config.stash.get(RUN, None)
    shard = config.getoption("--shard")
    return ([run.header] if run else []) + ([f"shard: {shard}"] if shard else [])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the run over to a worker of xdist, which then leases a database of its own."""
    run = node.config.stash.get(RUN, None)
    if run is None:
        return
    spec = node.gateway.spec
    # Of one that is started as -n does it we know that it sees the files of this process.
    local = spec.popen and not spec.via and not spec.python
    if run.builder is not None and not (local and _share(node.config)):
        _finish(node.config)
    run.release()
    node.workerinput["rag_factory"] = run.hand_over()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """With `-n auto`: one process for tests that take seconds, at most one for each processor.

    What they took before counts: the same command line, or each of those that it names.
    """
    from rag_factory.testing.shards import read_durations, starts_with

    seconds = read_durations(_cache_file(config)).get(_command_line(config), 0.0)
    if not seconds:
        durations = read_durations(config.rootpath / DURATIONS).items()
        named = _named(config)
        seconds = sum(took for test, took in durations if any(starts_with(test, each) for each in named))
        with suppress(RagFactoryError):  # a wrong one is told when the run begins
            shard = _read_shard(config)
            seconds /= shard.total if shard else 1
    if not seconds:
        return None
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(processors, int(seconds / SECONDS_PER_WORKER))
    return workers if workers > 1 else 0


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Keep the garbage collector from what was imported and collected, and let it begin."""
    try:
        return (yield)
    finally:
        gc.freeze()
        _wake_collector(session.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    """Mark the tests before -m chooses among them, and at last keep those of this shard."""
    _mark(config, items)
    result = yield
    shard = _read_shard(config)
    if shard is not None:
        from rag_factory.testing.shards import assign, read_durations

        durations = read_durations(config.rootpath / DURATIONS)
        shards = assign([item.nodeid for item in items], shard.total, durations)
        others = [item for item in items if shards[item.nodeid] != shard.index]
        items[:] = [item for item in items if shards[item.nodeid] == shard.index]
        config.hook.pytest_deselected(items=others)
        if others and not items:
            config.stash[_EMPTY_SHARD] = True
            getattr(config, "workeroutput", {})[EMPTY_SHARD] = True
    return result


def _mark(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell the groups of the tests, and skip those that are off."""
    run = config.stash.get(RUN, None)
    off = run.off if run else {}
    integration = f"{config.rootpath / 'tests' / 'integration'}{os.sep}"
    for item in items:
        fixtures = getattr(item, "fixturenames", [])
        if DATABASE_FIXTURES.intersection(fixtures):
            item.add_marker("db")
        if str(item.path).startswith(integration):
            item.add_marker("integration")
        for group in GROUPS:
            if group in off and item.get_closest_marker(group):
                item.add_marker(pytest.mark.skip(reason=off[group]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a test see the address of this process's database when it takes one, and else none."""
    run = item.config.stash.get(RUN, None)
    if run is not None and run.url and item.get_closest_marker("db"):
        os.environ["DATABASE_URL"] = run.url
        return
    os.environ.pop("DATABASE_URL", None)
    fixtures = getattr(item, "fixturenames", [])
    if DATABASE_FIXTURES.intersection(fixtures):
        # The first one here: leased before anything else, so that no other fixture comes too early for it.
        fixtures.insert(0, "worker_database")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Note which fixtures are pytest's, and which of the others outlive a test."""
    stash = request.config.stash
    module = getattr(fixturedef.func, "__module__", None) or ""
    if module.startswith(PLUGINS) and module not in ON_BEHALF:
        stash.setdefault(_HARMLESS, set()).add(fixturedef.argname)
    elif fixturedef.scope != "function":
        stash.setdefault(_WIDER, set()).add(fixturedef.argname)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Hold a test to leaving nothing, when all that it took has ended."""
    look = _needs_look(item, nextitem)
    try:
        result = yield
    except (Exception, pytest.fail.Exception):
        # That is what is told. What the test left must not reach the next one all the same.
        _look(item, always=look)
        raise
    judge(_look(item, always=look))
    return result


def _look(item: pytest.Item, *, always: bool) -> str | None:
    """Look at what a test left. Returns what is wrong. always: also if its own fixture found nothing."""
    held = item.config.stash.get(HELD, None)
    if held is None:
        return None
    if not (always or held.database.unended):
        held.database.restored = None
        return None
    wider = item.config.stash.get(_WIDER, set())
    try:
        return held.check_last(forgive=not wider.isdisjoint(getattr(item, "fixturenames", ())))
    except Exception:
        if item.get_closest_marker("db"):
            raise
        # No server, as it seems: no matter to a test that asked for none.
        return None
    finally:
        held.database.restored = None


def _needs_look(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether anything may have written where the test's own database fixture didn't see it any more."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if not item.get_closest_marker("db"):
        # It may ask for ours only as it runs; a doctest can always.
        return "request" in fixtures or not isinstance(item, pytest.Function)
    if not CHECKED.intersection(fixtures):
        return True
    ends_more = nextitem is None or nextitem.parent is not item.parent
    harmless = item.config.stash.get(_HARMLESS, set[str]())
    others = fixtures - harmless - {"request"}
    return ends_more or not others <= set(_parameters(item))


def _parameters(item: pytest.Item) -> Iterator[str]:
    """The arguments of a test that are no fixtures: parametrize gives them."""
    for mark in item.iter_markers("parametrize"):
        given = {**dict(zip(("argnames", "argvalues", "indirect"), mark.args, strict=False)), **mark.kwargs}
        names, indirect = given.get("argnames", ()), given.get("indirect", False)
        if indirect is not True:
            each = names.split(",") if isinstance(names, str) else names
            yield from {name.strip() for name in each} - set(indirect or ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """In a worker, get ready for the database that is being made meanwhile."""
    run = session.config.stash.get(RUN, None)
    if run is not None and run.note and any(item.get_closest_marker("db") for item in session.items):
        run.get_ready()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Let no test begin before its database is there; but an error in a test's file is told at once."""
    config = session.config
    # Workers of xdist begin their tests in spite of such an error.
    begins = hasattr(config, "workerinput") or config.getoption("continue_on_collection_errors")
    if session.items and (begins or not session.testsfailed):
        _finish(config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Learn from a worker that the shard is empty."""
    if getattr(node, "workeroutput", {}).get(EMPTY_SHARD):
        node.config.stash[_EMPTY_SHARD] = True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End at once what is still being built: xdist waits for its workers now, and they wait for that.

    A shard without tests is no failure: the tests are in the others.
    """
    run = session.config.stash.get(RUN, None)
    if run is not None and run.builder is not None:
        run.close()
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(_EMPTY_SHARD, False):
        session.exitstatus = pytest.ExitCode.OK


def _wake_collector(config: pytest.Config) -> None:
    if config.stash.get(_COLLECTOR, False):
        gc.enable()


class _Announcer:
    """Says what was built when a worker begins its first test, for which it has waited for that."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        """Say it once."""
        self._config.pluginmanager.unregister(self)
        _finish(self._config)


class _Recorder:
    """Adds up what each test took: its set-up, itself, and what follows it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a part of a test."""
        if not report.skipped:
            self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write them over those of earlier runs, and for this machine what the whole run took."""
        if not self._seconds:
            return
        from rag_factory.testing.shards import read_durations, write_durations

        config = self._config
        if config.getoption("--store-durations"):
            path = config.rootpath / DURATIONS
            write_durations(path, read_durations(path) | self._seconds)
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        whole = ended and not (session.shouldstop or session.shouldfail or config.stash[RUN].problem)
        if whole and config.pluginmanager.hasplugin("cacheprovider"):
            line, known = _command_line(config), read_durations(_cache_file(config))
            known.pop(line, None)
            latest = dict([*known.items()][1 - COMMAND_LINES :])
            config.cache.set(CACHE, latest | {line: round(sum(self._seconds.values()), 3)})


def _begin(config: pytest.Config, patch: pytest.MonkeyPatch) -> None:
    """Read the settings, hide them from the tests, and begin the run."""
    try:
        _read_shard(config)
        settings = None if _only_looks(config) else read_test_settings(config.rootpath)
        if settings is not None:
            check_place(settings)
    except RagFactoryError as error:
        raise pytest.UsageError(str(error)) from error
    environment = dict(os.environ)
    _hide_settings(patch)
    if settings is not None:
        config.stash[RUN] = begin_run(settings, _count_workers(config), environment)


def _cache_file(config: pytest.Config) -> Path:
    """Where pytest's cache keeps what runs took; workers are counted before it can be asked."""
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return Path(os.devnull)
    return config.rootpath / str(config.getini("cache_dir")) / "v" / CACHE


def _command_line(config: pytest.Config) -> str:
    """What chooses the tests of this run, in one line."""
    options = ("keyword", "markexpr", "--shard", "lf", "deselect", "ignore", "ignore_glob")
    chosen = [config.getoption(name, None) for name in options]
    groups = [os.environ.get(name) for name in GROUPS.values()]
    return " ".join(map(str, [*sorted(_named(config)), *chosen, *groups]))


def _named(config: pytest.Config) -> list[str]:
    """What the ids of the tests begin with that the command line names."""
    named = []
    for argument in config.args:
        path, colons, name = argument.partition("::")
        folder = os.path.relpath(config.invocation_params.dir / path, config.rootpath).replace(os.sep, "/")
        named.append("" if folder == "." else folder + colons + name)
    return named


def _count_workers(config: pytest.Config) -> int:
    """How many processes run tests: those of xdist, or this one."""
    if not config.getoption("tx", None):
        return 1
    from xdist.workermanage import parse_tx_spec_config  # type: ignore[import-untyped] # has no types

    return len(parse_tx_spec_config(config))


def _share(config: pytest.Config) -> bool:
    """Let workers learn by a file what is built. False: there is no place for it."""
    run = config.stash[RUN]
    temporary = getattr(config, "_tmp_path_factory", None)
    if run.note or run.builder is None or temporary is None:
        return bool(run.note)
    try:
        note = temporary.getbasetemp() / "rag_factory.json"
        run.builder.write_to(note)
    except OSError:
        return False
    run.note = str(note)
    config.pluginmanager.register(_Announcer(config))
    return True


def _finish(config: pytest.Config) -> None:
    """Wait for what is still being built, and say what it has come to."""
    run = config.stash.get(RUN, None)
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if run is None or not run.finish() or terminal is None or terminal.no_header or not terminal.showheader:
        return
    terminal.write_line(run.header)


def _hide_settings(patch: pytest.MonkeyPatch) -> None:
    """Hide the application's settings and libpq's: what a developer has set must not decide what a test sees.

    The switches of groups stay: a test may ask which run.
    """
    private = {*NAMES, *OLD_NAMES} - set(GROUPS.values())
    for name in list(os.environ):
        if name in private or name.startswith("PG"):
            patch.delenv(name)
    patch.setenv("APP_ENV", "test")


def _read_shard(config: pytest.Config) -> Shard | None:
    text = config.getoption("--shard")
    if text is None:
        return None
    from rag_factory.testing.shards import Shard

    return Shard.parse(text)


def _only_looks(config: pytest.Config) -> bool:
    """Whether pytest was asked to show something rather than to run tests."""
    return any(config.getoption(name, None) for name in LOOKS)
