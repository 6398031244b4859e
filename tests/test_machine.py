"""What the machine gives: cores by affinity and quota, the same number everywhere, and a cache."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vgg_search.machine import cache_folder, cores

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
        file.write_text(f"{text}\n")
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
