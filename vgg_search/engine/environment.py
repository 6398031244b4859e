"""The environment in which Ray and torch are to be imported. Nothing heavy is imported here."""

import os
import secrets
from functools import cache

from vgg_search.config import Config

LOCAL = "local"  # a Ray of our own

# A waiting thread soon sleeps, for others need the core. With OpenMP's variable alone it sleeps at
# once, and two trained at 0.65 of their speed; libgomp's lets it look for a millisecond before.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000"}
# Set before Ray is imported. The record, the terminal and the signals are ours, so Ray keeps its
# own out of the way; and under `uv run` it is not to build an environment for each worker.
RAY_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Workers are started side by side: `StudySearcher` sees to it that there are not too many
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    **THREADS,
}


def address_of(config: Config) -> str:
    """Where the cluster is."""
    return config.address or os.environ.get("RAY_ADDRESS") or LOCAL


@cache
def token() -> str:
    """Of this process: of the first one that Ray reads in it, it never lets go."""
    return secrets.token_hex(32)


def ray_environment(config: Config, in_python: bool = False) -> dict[str, str]:
    """What Ray is to be imported with, for this experiment.

    A Ray of our own runs whatever it is sent: it listens on loopback alone, as it does by itself on
    macOS, and asks other users of the machine for a token, which no file holds. A process that is
    not ours (`in_python`) has Ray's own token, for another may have been read there.
    """
    if address_of(config) != LOCAL:
        return RAY_ENVIRONMENT
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token()}
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    # Nobody asks for the list of the last 100,000 tasks, which it would keep
    untold = {"RAY_task_events_report_interval_ms": "0"}
    return RAY_ENVIRONMENT | loopback | untold | ({} if in_python else own)
