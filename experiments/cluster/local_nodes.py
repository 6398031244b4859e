"""A Ray cluster of three nodes on this machine, and a command run on it. No containers, no root.

python experiments/cluster/local_nodes.py                       # a smoke search, about a minute
python experiments/cluster/local_nodes.py COMMAND ...           # any command, with RAY_ADDRESS set
python experiments/cluster/local_nodes.py --workers 4 COMMAND ...

Each node has its own loopback address (127.0.0.2 and up), ports and temporary folder, and knows
the others by a token only, as on a real network. The head has no cores for trials, a node has one.
Ctrl-C ends it; only processes started here are ended.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

SMOKE = "python -m vgg_search.run --dataset sample --num-trials 4 --champion-epochs 2"
SECONDS = 120.0  # to wait for a node: ten where nothing else runs


class LocalNodes:
    """Nodes of one cluster, started and ended one by one; in a `with`, ended with it."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder, self.python = folder, python
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.port, dashboard = free_ports(2)
        self.address = f"127.0.0.2:{self.port}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.environment = {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Of a job that is submitted: its `python` is this one
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}  # by IP address
        self.temporary: list[str] = []  # folders of Ray
        self.metrics: dict[str, int] = {}  # ports of the nodes' Prometheus pages

    def start(self, num_cpus: int = 1, num_gpus: int = 0, **settings: str) -> str:
        """Start the head, then, at each further call, a node; returns its IP address.

        `settings` are further environment variables of the node. Returns once it is up.
        """
        ip = f"127.0.0.{len(self.nodes) + 2}"
        # Ray's sockets have long names, and those of Unix sockets end at 107 characters
        temporary = tempfile.mkdtemp(prefix="vgg-ray-")
        self.temporary.append(temporary)
        where = ["--address", self.address]
        if not self.nodes:
            where = ["--head", "--port", str(self.port), "--dashboard-port"]
            where += [self.dashboard.rpartition(":")[2], "--include-dashboard", "true"]
        command = [self.python, "-m", "ray.scripts.scripts", "start", "--block", *where]
        command += ["--node-ip-address", ip, "--num-cpus", str(num_cpus)]
        command += ["--num-gpus", str(num_gpus)]
        command += ["--object-store-memory", str(300 * 2**20), "--disable-usage-stats"]
        command += ["--temp-dir", temporary, "--include-log-monitor", "false"]
        names = ["dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export"]
        names += ["ray-client-server"] * (not self.nodes)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        for name, port in ports.items():
            command += [f"--{name}-port", str(port)]
        self.metrics[ip] = ports["metrics-export"]
        log = self.folder / f"{ip}.log"
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                env=environment | self.environment | settings,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                start_new_session=True,
            )
        self.nodes[ip] = process
        until = time.monotonic() + SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"node {ip} did not start: {log.read_text()}")
            time.sleep(0.1)
        return ip

    @property
    def running(self) -> list[str]:
        """Addresses of the nodes that have not ended, the head's first."""
        return [ip for ip, process in self.nodes.items() if process.poll() is None]

    def end(self, ip: str, number: int = signal.SIGKILL) -> None:
        """End a node: at once (a machine that is gone), or with SIGTERM as a batch system does."""
        process = self.nodes[ip]
        if number == signal.SIGTERM:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self) -> "LocalNodes":
        return self

    def __exit__(self, *_: object) -> None:
        for ip in reversed(self.nodes):
            self.end(ip)
        for folder in self.temporary:
            shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, no two of them alike."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def main(argv: list[str]) -> int:
    """Start the nodes, run the command, end the nodes; returns the command's exit code."""
    workers = 2
    if argv[:1] == ["--workers"]:
        workers, argv = int(argv[1]), argv[2:]
    command = argv or SMOKE.split()
    with tempfile.TemporaryDirectory(prefix="vgg-nodes-") as folder, LocalNodes(Path(folder)) as on:
        for number in range(workers + 1):
            began = time.monotonic()
            ip = on.start(num_cpus=min(number, 1))
            print(f"node {ip} is up after {time.monotonic() - began:.0f} s", file=sys.stderr)
        print(f"dashboard: {on.dashboard}", file=sys.stderr)
        driver = subprocess.Popen(command, env=os.environ | on.environment)
        # Ctrl-C reaches the driver too, which ends in its own way; SIGTERM is handed on
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _: driver.send_signal(number))
        return driver.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
