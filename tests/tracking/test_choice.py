"""Which tracker an address stands for, and a search with one that is nobody's but this test's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import vgg_search
from vgg_search.errors import InputError
from vgg_search.models.files import servable
from vgg_search.storage.addresses import TRACKERS, check_tracker, tracker_at
from vgg_search.tracking.choice import connect, named
from vgg_search.tracking.sender import MlflowTracker
from vgg_search.tracking.tracker import Status, Tracker, TrackerError

TINY = {"dataset": "sample", "train_images": 300, "val_images": 100, "num_trials": 2}
TINY |= {"max_epochs": 1, "champion_epochs": 0, "time_budget": None}


class Notes(Tracker):
    """What a search says, as a list of (run, what)."""

    said: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, folder: Path, uri: str, *_: Any) -> None:
        self.uri = uri

    @classmethod
    def check(cls, tracking_uri: str | None, experiment: str) -> None:
        if experiment == "full":
            raise TrackerError(f"no room at {tracking_uri}")

    @property
    def viewed_by(self) -> str:
        return "less the.notes"

    def run(self, key: str, *_: Any, **__: Any) -> None:
        self.said.append((key, "run"))

    def log(self, key: str, metrics: Mapping[str, float], step: int) -> None:
        self.said.append((key, f"step {step}"))

    def end(self, key: str, status: Status) -> None:
        self.said.append((key, status))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(TRACKERS, "notes", f"{__name__}:Notes")
    Notes.said.clear()
    return Notes.said


@pytest.mark.parametrize(
    "address", ["mlflow.db", "mlruns", "sqlite:///a.db", "mysql+pymysql://h/d", "databricks", None]
)
def test_mlflow_is_at_its_addresses_and_by_default(address: str | None) -> None:
    assert named(address) == (MlflowTracker, address)


@pytest.mark.usefixtures("notes")
def test_another_is_at_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("notes:here", "notes+file:there"):
        assert check_tracker(address) == address
        assert tracker_at(address).endswith(":Notes")
        assert named(address)[0].__name__ == "Notes"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "notes:elsewhere")
    tracker = connect(tmp_path, None, "e", "s", servable)
    assert (type(tracker).__name__, tracker.uri) == ("Notes", "notes:elsewhere")


@pytest.mark.slow
def test_a_search_with_it(
    notes: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^no room at notes:here$"):
        vgg_search.search(**TINY, name="none", tracking_uri="notes:here", experiment="full")
    assert not notes
    assert not (tmp_path / "runs" / "none").exists()
    vgg_search.search(**TINY, name="noted", tracking_uri="notes:here")
    assert "compare   less the.notes\n" in capsys.readouterr().out
    assert notes[0] == ("study", "run")
    assert notes[-1] == ("study", "FINISHED")
    for number in range(2):
        expected = [(f"trial/{number}", what) for what in ("run", "step 1", "FINISHED")]
        told = [entry for entry in notes if entry[0] == f"trial/{number}"]
        assert [*dict.fromkeys(told)] == expected, "metrics of a step come in several rows"
    assert not list(tmp_path.rglob("mlflow.db"))
