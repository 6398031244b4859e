"""How a cluster is joined and left, or a Ray of our own is started and ended."""

import atexit
import gc
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

import vgg_search
from vgg_search.config import Config, ConfigError
from vgg_search.engine.environment import LOCAL, THREADS, address_of
from vgg_search.machine import cores

# Of the environment of Tune's workers: where the whole job has it, Ray gives them processes that
# stand ready, instead of new ones
WORKER_ENVIRONMENT = {"PL_DISABLE_FORK": "1"}
PACKAGE = Path(vgg_search.__file__).parent
CONNECT_SECONDS = 10.0
# Of a local Ray under its temporary folder, the longest: time and process have their full width
RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"

log = logging.getLogger("vgg_search")


def _check_address(address: str) -> None:
    """Raises ConfigError where Ray would try for minutes, or the driver has to be elsewhere."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.rpartition(":")
    rule = f"address must be auto or host:port of a Ray cluster, got {address}"
    if "://" in address:
        raise ConfigError(f"{rule}; from a machine outside of it: ray job submit")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(rule)
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"{rule}: {error.strerror or error}") from None


def _check_temporary_folder() -> None:
    """Raises ConfigError where Ray's sockets would have too long a path, or none can be made."""
    names = ["RAY_TMPDIR", *(["TMPDIR"] if sys.platform == "linux" else [])]
    name = next((name for name in names if name in os.environ), "RAY_TMPDIR")
    folder = Path(os.environ.get(name, "/tmp"))
    # What the kernel allows in the address of a socket, less its closing zero
    most = (107 if sys.platform == "linux" else 103) - len(os.fsencode(RAY_SOCKET))
    if (length := len(os.fsencode(folder))) > most:
        raise ConfigError(
            f"{name} must have at most {most} bytes, or Ray's sockets have too long a path, got "
            f"{length} ({folder}); set RAY_TMPDIR=/tmp"
        )
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{name} must be a folder that can be written to, got {folder}")


def refusal(address: str, text: str) -> str:
    """One line for what Ray says, in several, when it does not connect to `address`."""
    versions = re.findall(r"(?:Ray|Python): (\S+)", text)
    if "Version mismatch" in text and len(versions) == 4:
        ray, python, own_ray, own_python = versions
        return (
            f"the cluster at {address} runs Ray {ray} on Python {python}, "
            f"this driver has Ray {own_ray} on Python {own_python}: they must be the same"
        )
    first = text.strip().splitlines()[0].partition(". ")[0].rstrip(".")
    hint = "of one that asks for a token RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE tell it"
    return f"address must be a Ray cluster that answers, got {address}: {first}; {hint}"


def _check_token(address: str) -> None:
    """Raises ConfigError where the cluster asks nobody for a token, though others reach it. Ray
    does not let a driver without one into a cluster that does."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return
    # On any other address, 127.0.0.2 too, Ray listens at all addresses of the machine
    nodes = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if others := sorted(nodes - {"127.0.0.1", "::1"}):
        raise ConfigError(
            f"address must be a Ray cluster that asks for a token, got {address}: whoever reaches "
            f"{others[0]} can run programs there; start it with RAY_AUTH_MODE=token, or join it "
            "all the same with --insecure-cluster true"
        )


def runtime_env(address: str) -> dict[str, Any]:
    """What the job's workers are given: on a cluster this package, and of the environment what the
    driver has set for itself."""
    if address == LOCAL:
        return {"env_vars": WORKER_ENVIRONMENT}
    threads = {name: os.environ.get(name, value) for name, value in THREADS.items()}
    return {"py_modules": [str(PACKAGE)], "env_vars": WORKER_ENVIRONMENT | threads}


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """A connection to the cluster of `config.address` or RAY_ADDRESS, else a Ray of our own.

    A cluster's workers get this package from here; they need its dependencies installed only.
    Raises ConfigError where there is no cluster, or one of another Ray or Python, or one that is
    open to others.
    """
    address = address_of(config)
    _check_address(address)
    if ray.is_initialized():  # by the user, who also ends it
        yield
        return
    if address == LOCAL:
        _check_temporary_folder()
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        ray.init(
            address=address,
            num_cpus=cores() if address == LOCAL else None,  # Ray counts those of others too
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env=runtime_env(address),
        )
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise ConfigError(refusal(address, str(error))) from error
    try:
        if address != LOCAL and not config.insecure_cluster:
            _check_token(address)
        yield
    finally:
        _shut_down()


def _shut_down() -> None:
    """Leave Ray, with no collection of garbage meanwhile.

    Where another thread (the tracker's, say) frees a handle of an actor or an object then, Ray's
    core aborts the process. Tune leaves its trials in cycles, so handles cannot all be dropped by
    hand.
    """
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    except OSError as error:  # the disk of its own files; its processes end with this one
        atexit.unregister(ray.shutdown)  # or it is tried again, with a traceback
        log.warning("Ray was not shut down in order: %s", error)
    finally:
        gc.enable()
