"""The recipes in experiments/: what can be found wrong in them without a cluster or a GPU."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vgg_search.cli.arguments import load_config
from vgg_search.config import Config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "experiments" / "cluster"
SCRIPTS = sorted([*ROOT.glob(".ci/*"), *(ROOT / "tests").glob("*.sh"), *CLUSTER.glob("*.s*h")])
RAY_UP = yaml.safe_load((CLUSTER / "ray_up.yaml").read_text())
RAY_JOB = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())
# Kubernetes' resource.Quantity, without the signs and exponents that nobody writes
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


def searches(text: str) -> list[list[str]]:
    """The flags of each `python -m vgg_search.run` in a script or an entrypoint, its own `$@` left
    out and its variables by their names."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    found = [line.partition("-m vgg_search.run")[2] for line in lines if "vgg_search.run" in line]
    words = [shlex.split(flags.rstrip(" &")) for flags in found]
    return [[word.lstrip("$") for word in line if word != "$@"] for line in words]


def dry(flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    """What our command line makes of them, where there is neither a study nor a bucket."""
    monkeypatch.chdir(tmp_path)
    return load_config(flags)[0]


@pytest.mark.parametrize("name", ["kuberay.yaml", "search.sh", "slurm.sbatch"])
def test_our_command_line_takes_what_a_recipe_says(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (CLUSTER / name).read_text()
    (flags,) = searches(RAY_JOB["spec"]["entrypoint"] if name.endswith("yaml") else text)
    config = dry(flags, monkeypatch, tmp_path)
    # The same command goes on with its study, wherever it is started again
    assert flags[flags.index("--resume") + 1] == config.name
    assert config.storage_path == ("runs" if name == "slurm.sbatch" else "s3://BUCKET/studies")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck on this machine")
    ran = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


# ---- ray up -------------------------------------------------------------------------------------


def test_ray_itself_takes_ray_up() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    ready = prepare_config(RAY_UP)
    validate_config(ready)
    assert ready["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert ready["setup_commands"] == RAY_UP["setup_commands"]  # none of Ray's defaults beside them


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_starts_with_a_token_on_each_node(kind: str) -> None:
    from ray.scripts.scripts import start

    stop, command = map(shlex.split, RAY_UP[f"{kind}_start_ray_commands"])
    assert stop == ["ray", "stop"]
    mode, path, *started = command
    assert mode == "RAY_AUTH_MODE=token"
    folder = path.removeprefix("RAY_AUTH_TOKEN_PATH=").removesuffix("/token")
    assert folder.replace("$HOME", "/home/ray") in RAY_UP["file_mounts"]
    assert started[:2] == ["ray", "start"]
    start.make_context("ray start", started[2:])  # refuses flags that are not Ray's


def test_the_search_is_started_as_ray_exec_does_and_with_the_same_token() -> None:
    head = (CLUSTER / "ray_up.yaml").read_text().partition("cluster_name")[0]
    (script,) = re.findall(r"ray exec .*'bash ~/vgg-search/(\S+)'", head)  # submit runs Python only
    assert (ROOT / script).is_file()
    token = r"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=\$HOME/.vgg-search/token"
    assert re.search(token, (ROOT / script).read_text())
    assert len(re.findall(token, (CLUSTER / "ray_up.yaml").read_text())) == 2


# ---- KubeRay ------------------------------------------------------------------------------------
# Of the definition of a RayJob (ray.io_rayjobs.yaml of KubeRay 1.6, v1), what this one uses.


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_ray_job_is_one() -> None:
    job, spec = RAY_JOB, RAY_JOB["spec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch("[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    known = (
        "entrypoint backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished rayClusterSpec"
    )
    assert set(spec) == set(known.split())
    assert spec["shutdownAfterJobFinishes"] is True  # else a time to live is refused
    assert spec["backoffLimit"] > 0
    cluster = spec["rayClusterSpec"]
    known = "rayVersion authOptions headGroupSpec workerGroupSpecs"
    assert set(cluster) == set(known.split())
    assert all(isinstance(v, str) for v in cluster["headGroupSpec"]["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        known = "groupName replicas minReplicas maxReplicas rayStartParams template"
        assert set(group) == set(known.split())
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_its_pods_have_one_container_each_with_what_ray_is_to_have() -> None:
    for pod in pods(RAY_JOB):
        (container,) = pod["containers"]
        assert {"name", "image", "resources", "envFrom"} == set(container)
        for amounts in container["resources"].values():
            assert all(QUANTITY.fullmatch(amount) for amount in amounts.values()), amounts
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]


def test_its_pods_know_each_other_by_a_token() -> None:
    # From this the operator makes a Secret, and RAY_AUTH_MODE and RAY_AUTH_TOKEN of each container
    # and of the submitter (SetContainerTokenAuthEnvVars). A value of ours would stand before it.
    assert RAY_JOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    containers = [container for pod in pods(RAY_JOB) for container in pod["containers"]]
    names = [entry["name"] for container in containers for entry in container.get("env", [])]
    assert not [name for name in names if name.startswith("RAY_AUTH")]


def test_images_are_of_the_ray_that_is_installed() -> None:
    import ray

    minor = ray.__version__.rpartition(".")[0]
    kuberay = (CLUSTER / "kuberay.yaml").read_text()
    versions = [RAY_JOB["spec"]["rayClusterSpec"]["rayVersion"]]
    versions += re.findall(r"rayproject/ray:([\d.]+)", kuberay + str(RAY_UP["docker"]))
    assert len(versions) == 4
    assert {version.rpartition(".")[0] for version in versions} == {minor}
