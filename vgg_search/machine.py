"""What this machine lets the process use: cores, places of a user, standard streams.

Standard library only: the one place that asks the machine, so that a forecast, a cluster of our own
and whatever trains by itself have the same answer.
"""

import getpass
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger("vgg_search")


def unsupported() -> str:
    """What is said where nothing of this package runs; empty elsewhere."""
    here = "vgg_search runs on Linux and macOS; on Windows run it in WSL (wsl --install)"
    return here if sys.platform in ("win32", "cygwin") else ""


def cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use, at least 1.

    Those of its affinity (taskset, Slurm, a container's cpuset), cut by the quota of each cgroup
    that it is in (a container's --cpus, a limit of Kubernetes), v1 or v2. A part of a core is not
    counted: two threads on 1.5 cores would wait for each other. `root` holds proc and sys.
    """
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has neither affinity nor cgroups
        usable = os.cpu_count() or 1
    return max(1, int(min([usable, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each cgroup of this process allows, of those that have a quota."""
    try:
        lines = os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines()
    except OSError:
        return
    for line in lines:
        if line.count(":") < 2:  # a sandbox's own way
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = ("cpu", controllers) if controllers else ("", "unified")
        for mount in {(root / "sys/fs/cgroup" / name).resolve() for name in names}:
            # A limit of any group around it counts too. In a container the path may be the host's,
            # of which only the top, the container's own group, is there.
            own = mount / path.strip("/")
            for group in (own, *own.parents[: len(own.parts) - len(mount.parts)]):
                if (quota := _quota(group)) is not None:
                    yield quota


def _quota(group: Path) -> float | None:
    """Cores that a cgroup allows, None where it has no quota."""
    try:
        if (file := group / "cpu.max").is_file():  # v2: "150000 100000", or "max 100000"
            quota, period = map(float, file.read_text().split())
        else:
            quota, period = (
                float((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
            )
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def user_environment() -> dict[str, str]:
    """HOME and USER for a process whose user has neither home nor name, as in a container that is
    started with --user: Ray, torch and MLflow fail without. Empty for any other."""
    variables = {}
    try:
        getpass.getuser()
    except (KeyError, OSError):
        variables["USER"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        variables["HOME"] = str(_temporary_home())
    return variables


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables where they are not set; afterwards without any that came meanwhile, for Ray and
    torch set some of their own."""
    before = set(os.environ)
    os.environ.update({name: text for name, text in variables.items() if name not in before})
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]


def cache_folder() -> Path:
    """Where what is downloaded is kept: XDG_CACHE_HOME, else ~/.cache, else, where that cannot be
    written to, a folder among the temporary ones."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return _temporary_home()
    folder = caches / "vgg_search"
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return folder if there == folder or os.access(there, os.W_OK) else _temporary_home()


@cache
def _temporary_home() -> Path:
    folder = Path(tempfile.gettempdir(), f"vgg_search-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # somebody else's trap
        folder = Path(tempfile.mkdtemp(prefix="vgg_search-"))
    log.warning("no home folder that can be written to: %s takes its place", folder)
    return folder


class _LastingFile(io.FileIO):
    """A standard stream whose reader may go away: what is written after that is lost, in silence.

    `| head` closes its pipe, a terminal hangs up, a disk is full: nothing that ends a search.
    """

    def write(self, content: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(content)
        except OSError:
            return len(memoryview(content).cast("B"))


def _lasting(stream: Any) -> Any:
    if stream is None:  # it was closed before Python started
        return Path(os.devnull).open("w")
    if type(stream) is not io.TextIOWrapper:  # a notebook's, a test's
        return stream
    file = io.BufferedWriter(_LastingFile(stream.fileno(), "w", closefd=False))
    settings = {name: getattr(stream, name) for name in ("line_buffering", "write_through")}
    # A file's name need not be text: it is printed as it is
    errors = "surrogateescape" if stream.errors == "strict" else stream.errors
    return io.TextIOWrapper(file, stream.encoding, errors, **settings)


@contextmanager
def silent_libraries() -> Iterator[None]:
    """In the block nothing reaches stderr: libtiff writes there of each damaged file, beside what
    we say of it."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """In the block, stdout and stderr take whatever is written, though nobody may read it."""
    if None in (sys.stdin, sys.stdout, sys.stderr):  # or the next file to be opened is taken for it
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)
    before = sys.stdout, sys.stderr
    for stream in filter(None, before):
        with suppress(OSError, ValueError):
            stream.flush()
    sys.stdout, sys.stderr = map(_lasting, before)
    try:
        yield
    finally:
        for old, new in zip(before, (sys.stdout, sys.stderr), strict=True):
            new.flush()
            if old is None:
                new.close()
        sys.stdout, sys.stderr = before
