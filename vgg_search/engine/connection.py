"""How a cluster is joined and left, or a Ray of our own is started and ended."""

import gc
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

import vgg_search
from vgg_search.config import Config, ConfigError

PACKAGE = Path(vgg_search.__file__).parent
CONNECT_SECONDS = 10.0
LOCAL = "local"  # a Ray of our own


def address_of(config: Config) -> str:
    """Where the cluster is."""
    return config.address or os.environ.get("RAY_ADDRESS") or LOCAL


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


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """A connection to the cluster of `config.address` or RAY_ADDRESS, else a Ray of our own.

    A cluster's workers get this package from here; they need its dependencies installed only.
    """
    if ray.is_initialized():  # by the user, who also ends it
        yield
        return
    address = address_of(config)
    _check_address(address)
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    shipped: dict[str, Any] = {"py_modules": [str(PACKAGE)]}
    # Of the driver's environment, what workers on other machines are to have too (see run.py)
    shipped["env_vars"] = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env=None if address == LOCAL else shipped,
        )
    except (ConnectionError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"address must be a Ray cluster that answers, got {address}: {text}"
        ) from error
    try:
        yield
    finally:
        _shut_down()


def _shut_down() -> None:
    """Leave Ray, with no collection of garbage meanwhile.

    Where another thread frees a handle of an actor or an object then, Ray ends the process.
    """
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()
