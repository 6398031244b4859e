"""What the machine gives: cores by affinity and quota, the same number everywhere, and a cache."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vgg_search.machine import cache_folder, cores, user_environment

MANY = 10**6  # more cores than any quota below
QUOTAS: list[tuple[str, dict[str, str], int]] = [
    # /proc/self/cgroup, files under /sys/fs/cgroup, cores
    ("0::/", {"cpu.max": "200000 100000"}, 2),
    ("0::/", {"cpu.max": "150000 100000"}, 1),
    ("0::/", {"cpu.max": "10000 100000"}, 1),
    ("0::/", {"cpu.max": "max 100000"}, MANY),
    ("0::/", {}, MANY),
    ("0::/", {"cpu.max": "nonsense"}, MANY),
    # The strictest of the groups around it
    ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "9 1"}, 3),
    ("0::/a/b", {"a/b/cpu.max": "300000 100000", "c/cpu.max": "100000 100000"}, 3),
    # A path of the host's, of which a container sees the top
    ("0::/docker/1f", {"cpu.max": "400000 100000"}, 4),
    ("0::/../x", {"cpu.max": "400000 100000"}, 4),
    # v1, also under its whole name, and beside v2 for other things
    ("4:memory:/\n1:cpu:/", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "1e5"}, 2),
    ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, MANY),
    (
        "3:cpu,cpuacct:/slurm/job_7\n0::/",
        {
            "cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "350000",
            "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000",
            "unified/cpu.max": "max 100000",
        },
        3,
    ),
    ("2:cpuset:/x\n", {"cpuset/x/cpu.max": "100000 100000"}, MANY),
    # What a sandbox may show instead
    ("nothing\n\n0::/", {"cpu.max": "200000 100000"}, 2),
    ("0::/", {"cpu.max": "200000 0"}, MANY),
    ("0::/\udcff#/é", {"cpu.max": "max 1", "\udcff#/é/cpu.max": "200000 100000"}, 2),
]


@pytest.mark.parametrize(("groups", "files", "number"), QUOTAS)
def test_a_quota_of_any_group_around_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    files: Mapping[str, str],
    number: int,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(MANY), raising=False)
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        file = tmp_path / (name if name.startswith("proc") else f"sys/fs/cgroup/{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(f"{text}\n"))
    assert cores(tmp_path) == number


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert cores(tmp_path) == len(os.sched_getaffinity(0))


# Where a number of cores is counted or used: the forecast, a Ray of our own, torch in use
COUNTS = """
import torch, ray
from vgg_search.config import Config
from vgg_search.dry_run import slots_here
from vgg_search.engine.connection import ray_cluster
from vgg_search.machine import cores
from vgg_search.provenance import provenance
from vgg_search.training.inference import own_cores
with own_cores():
    threads = torch.get_num_threads()
with ray_cluster(Config()):
    ours = int(ray.cluster_resources()["CPU"])
print(cores(), slots_here(Config()), threads, ours, provenance()["host"].split(", ")[1].split()[0])
"""
GROUP = Path("/sys/fs/cgroup/cpu/vgg_search_test")


def counts(*before: str) -> set[str]:
    command = [*before, sys.executable, "-c", COUNTS]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_one_core_of_several_is_one_everywhere() -> None:
    assert counts("taskset", "-c", str(min(os.sched_getaffinity(0)))) == {"1"}


def test_a_real_quota_is_kept_everywhere() -> None:
    try:
        GROUP.mkdir()
    except OSError:
        pytest.skip("no cgroup v1 that can be written to")
    try:
        if not (GROUP / "cpu.cfs_quota_us").exists():
            pytest.skip("no cgroup v1")
        (GROUP / "cpu.cfs_quota_us").write_text("150000")
        assert counts("sh", "-c", f'echo $$ > {GROUP}/tasks; exec "$@"', "sh") == {"1"}
    finally:
        GROUP.rmdir()


def test_the_cache_is_under_the_home_or_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "vgg_search"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named" / "vgg_search"


# As `docker run --user 12345`: no entry in the list of users, no HOME; root may still read all
NOBODY = (
    *"setpriv --reuid 12345 --regid 12345 --clear-groups".split(),
    *"--inh-caps=+dac_override --ambient-caps=+dac_override".split(),
    *"env -u HOME -u USER -u LOGNAME -u LNAME -u USERNAME -u XDG_CACHE_HOME".split(),
)
AT_HOME = """
import getpass, os, pathlib
from vgg_search.data.splits import load_splits
from vgg_search.machine import cache_folder, user_environment
cache = cache_folder()
os.environ.update(user_environment())
print(getpass.getuser(), pathlib.Path.home(), cache, sep="\\n")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_user_without_home_and_name_has_both(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    command = [*NOBODY, f"TMPDIR={tmp_path}", sys.executable, "-c", AT_HOME]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    there = str(tmp_path / "vgg_search-12345")
    assert done.stdout.split() == ["user-12345", there, there]
    assert done.stderr == (f"no home folder that can be written to: {there} takes its place\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_command_runs_without_home_and_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    flags = ["run", "--dry-run", "--dataset", "sample", "--train-images", "300"]
    command = [*NOBODY, f"TMPDIR={tmp_path}", sys.executable, "-m", "vgg_search", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "takes its place" in done.stderr


def test_a_home_that_is_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "HOME" not in user_environment()


@pytest.mark.parametrize(
    ("errors", "printed"), [("strict", b"caf\xe9.png"), ("backslashreplace", rb"caf\udce9.png")]
)
def test_a_file_name_that_is_not_text_can_be_printed(errors: str, printed: bytes) -> None:
    """As it is, unless the user asks for another way."""
    script = (
        "import os\n"
        "from vgg_search.machine import lasting_output\n"
        "with lasting_output():\n"
        "    print(os.fsdecode(b'caf\\xe9.png'))\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed + b"\n", b"")


ON_WINDOWS = "import sys; sys.platform = 'win32'\n"


@pytest.mark.parametrize("module", ["vgg_search.run", "vgg_search"])
def test_windows_is_told_of_wsl(module: str) -> None:
    script = f"{ON_WINDOWS}import runpy; runpy.run_module({module!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "vgg-search: vgg_search runs on Linux and macOS; on Windows run it in WSL (wsl --install)\n"
    )


def test_windows_is_told_of_wsl_from_python() -> None:
    script = f"{ON_WINDOWS}import vgg_search; vgg_search.search"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: vgg_search runs on Linux and mac")
