"""A stand-in for torch.cuda that notes what is asked of it, in order."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vgg_search.training import graphs
from vgg_search.training.graphs import Graphs


class Batch:
    """A part of the table as Graphs sees it."""

    device = torch.device("cuda")

    def __init__(self, size: int) -> None:
        self.shape = (6, size)

    def clone(self) -> "Batch":
        return Batch(self.shape[1])


class FakeCuda:
    """Notes what is asked of torch.cuda, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: bool = False) -> None:
        self.events: list[str] = []
        self.mode, self.stream, self.refuses = 0, "main", refuses
        self.pools: list[Any] = []
        self.streams = 0
        fake = {
            "Stream": self.new_stream,
            "current_stream": lambda: SimpleNamespace(wait_stream=lambda _: None),
            "set_stream": lambda _: self.events.append("set_stream"),
            "stream": self.on_stream,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
            "CUDAGraph": lambda: SimpleNamespace(
                replay=lambda: self.events.append("replay"), pool=lambda: "pool"
            ),
            "graph": self.capture,
            "current_device": lambda: 0,
            "default_generators": [
                SimpleNamespace(
                    graphsafe_set_state=lambda _: self.events.append("generator"),
                    clone_state=lambda: None,
                )
            ],
        }
        for name, value in fake.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(Batch, "copy_", lambda *_: self.events.append("copy"), raising=False)
        monkeypatch.setattr(Graphs, "spoiled", False)
        graphs.side_stream.cache_clear()

    def new_stream(self, device: Any) -> Any:
        self.streams += 1
        return SimpleNamespace(wait_stream=lambda _: None)

    @contextmanager
    def on_stream(self, stream: Any) -> Any:
        yield

    def set_mode(self, mode: int | str) -> None:
        self.mode = mode  # type: ignore[assignment]

    @contextmanager
    def capture(self, graph: Any, pool: Any, stream: Any) -> Any:
        self.events.append("capture")
        self.pools.append(pool)
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield
