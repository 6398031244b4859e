"""Clusters for tests: the session's own Ray as `vgg_search` sees it, and real nodes."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import free_port
from local_nodes import LocalNodes

from vgg_search.engine.nodes import Cluster
from vgg_search.storage.place import Place
from vgg_search.study.study import Study

__all__ = ["EXPERIMENTS", "LocalNodes", "cluster_of", "s3_server"]

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "cluster"


def cluster_of(study: Study) -> Cluster:
    """The session's Ray, for a study that lies in a temporary folder."""
    return Cluster(study.config, Place.of(str(study.folder.parent), study.folder.name))


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A server that speaks S3, with a bucket `bucket`; yields the environment of its users."""
    port = free_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    try:
        until = time.monotonic() + 60
        while True:
            bucket = urllib.request.Request(
                f"{environment['AWS_ENDPOINT_URL']}/bucket", method="PUT"
            )
            try:
                with urllib.request.urlopen(bucket, timeout=5):
                    break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        yield environment
    finally:
        server.kill()
        server.wait()
