"""MLflow, fed from the outbox by one thread.

The sender takes the oldest rows, groups them by run, sends each group, and only then removes it;
so an outage loses nothing, and neither does kill -9. What is sent again adds nothing: runs are
found by a tag, points have fixed timestamps. MLflow takes seconds to import; this thread does it.
"""

import fcntl
import json
import logging
import shlex
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from vgg_search.storage.addresses import masked, sqlite_address
from vgg_search.storage.checksums import read_cards
from vgg_search.storage.folder import OUTBOX, OUTBOX_LOCK, SUMMARY
from vgg_search.study.tables import write_summary
from vgg_search.tracking import mlflow_adapter
from vgg_search.tracking.check import check_artifacts, check_mlflow
from vgg_search.tracking.choice import Check, connect
from vgg_search.tracking.mlflow_adapter import in_a_line, permanent
from vgg_search.tracking.outbox import EMPTY, Lane, Outbox, OutboxError, Row
from vgg_search.tracking.recorder import key_of
from vgg_search.tracking.registry import register
from vgg_search.tracking.tracker import ANSWERS, Servable, TrackerError

KEY_TAG = "vgg_search.key"
PARENT_TAG = "mlflow.parentRunId"
# Tags that MLflow's page has a place for, by our names
TAGS = {
    "parent_id": PARENT_TAG,
    "description": "mlflow.note.content",
    "source": "mlflow.source.name",
}
ROUND_SECONDS, LONGEST_PAUSE = 1.0, 15.0
HURRY_SECONDS, HURRY_PAUSE = 0.1, 2.0  # while somebody waits; the second, after a failure
ANY_STAGE = 3  # ViewType.ALL: a run may be deleted, and restored
ROWS = 1000  # of a round
LIMITS = {"metric": 800, "param": 100, "tag": 100}  # of a call; MLflow takes 1,000 items in all

log = logging.getLogger("vgg_search")


class Waits:
    """Lanes that failed, each with when, for how long it is left alone, and why."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, tuple[float, float, str]] = {}

    @property
    def error(self) -> str | None:
        """Of the lane that failed last."""
        return max(self._lanes.values(), default=(0.0, 0.0, None))[2]

    def due(self, lanes: list[Lane], hurry: bool) -> list[Lane]:
        """Those to be tried now, first those that did not fail."""
        now, longest = time.monotonic(), HURRY_PAUSE if hurry else LONGEST_PAUSE
        waits = {lane: self._lanes.get(lane, (0.0, 0.0, "")) for lane in lanes}
        due = [lane for lane, (at, pause, _) in waits.items() if now >= at + min(pause, longest)]
        return sorted(due, key=lambda lane: waits[lane][0])

    def failed(self, lane: Lane, error: str) -> bool:
        """Notes it; whether it is to be said: neither records nor files failed before."""
        new = not any(other.files == lane.files for other in self._lanes)
        pause = self._lanes.get(lane, (0.0, ROUND_SECONDS, ""))[1]
        self._lanes[lane] = time.monotonic(), min(2 * pause, LONGEST_PAUSE), error
        return new

    def succeeded(self, lane: Lane) -> None:
        self._lanes.pop(lane, None)

    def keep(self, lanes: list[Lane]) -> None:
        """Drops those that have nothing to send any more."""
        self._lanes = {lane: wait for lane, wait in self._lanes.items() if lane in lanes}


class MlflowTracker(Outbox):
    """An outbox with its sender, which sends nothing before `start`."""

    def __init__(
        self,
        folder: Path,
        tracking_uri: str | None,
        experiment: str,
        study: str,
        servable: Servable,
    ) -> None:
        super().__init__(folder, mlflow_adapter.address(tracking_uri), experiment, study)
        self.servable = servable
        self._stop, self._hurry = threading.Event(), threading.Event()
        self._tried = threading.Event()  # a first round has ended
        self._thread: threading.Thread | None = None
        self._client: Any = None
        self._experiment_id, self._place = "", ""  # where its artifacts go
        self._file: mlflow_adapter.FileId = None  # of the database that is written to
        self._waits = Waits()

    @classmethod
    def check(cls, tracking_uri: str | None, experiment: str) -> None:
        check_mlflow(mlflow_adapter.address(tracking_uri), experiment)

    @property
    def viewed_by(self) -> str:
        if self.uri.startswith("http"):
            return masked(self.uri)
        here = self.uri == sqlite_address(Path.cwd() / "mlflow.db")
        store = "" if here else f" --backend-store-uri {shlex.quote(self.uri)}"
        return masked(f"mlflow ui{store}")

    def start(self, after: float = 0.0) -> None:
        """As Tracker says. Import torch and Ray first: two threads that import the same packages
        can each get the other's half-made modules."""
        self._thread = threading.Thread(target=self._send_for_ever, args=(after,), daemon=True)
        self._thread.start()

    def flush(self, timeout: float) -> int:
        until = time.monotonic() + timeout
        self._hurry.set()
        if self._thread:  # what MLflow has lost, which is unsent, is known once it was asked
            self._tried.wait(timeout)
        while (unsent := self.unsent) and time.monotonic() < until:
            time.sleep(0.02)
        self._hurry.clear()
        return unsent

    def close(self, timeout: float) -> int:
        unsent = self.flush(timeout)
        self._stop.set()
        self._hurry.set()
        if self._thread:
            self._thread.join(2)  # a call that hangs may be left behind: its rows stay
        return unsent

    def _send_for_ever(self, after: float) -> None:
        pause = ROUND_SECONDS
        self._hurry.wait(after)
        with (self.folder / OUTBOX_LOCK).open("w") as lock:
            while not self._stop.is_set():
                sent = False
                try:
                    # Two senders (a search, and `sync` beside it) would make runs twice.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._connect()
                    sent = self._send_round()
                    self._waits.keep(self.lanes)
                    self.error = self._waits.error
                except BlockingIOError:
                    self.error = "another process is sending"
                except Exception as error:  # whatever it is, this thread goes on: rows are kept
                    if self.error is None:
                        log.warning(
                            "tracker: nothing sent for now, all is kept: %s", in_a_line(error)
                        )
                    self.error = in_a_line(error)
                self._tried.set()
                ended = time.monotonic()
                pause = ROUND_SECONDS if sent or not self.error else min(2 * pause, LONGEST_PAUSE)
                self._rest(ended, pause)

    def _rest(self, since: float, pause: float) -> None:
        """Until the next round: shorter for who waits in `flush`, but what failed is not tried
        without a pause."""
        hurry = HURRY_PAUSE if self.error else HURRY_SECONDS
        if self._hurry.wait(pause):
            self._stop.wait(max(0.0, min(pause, hurry) - (time.monotonic() - since)))

    def _connect(self) -> None:
        """Raises TrackerError if the experiment is deleted: it may be restored; or if the file of
        the database is not that which MLflow has open: what it writes there, nobody reads."""
        if self._file and self._file != mlflow_adapter.file_id(self.uri):
            self.forget()
            raise TrackerError(f"{masked(self.uri)} was removed or replaced; `sync` sends all anew")
        if self._client is None:
            client = mlflow_adapter.connected(self.uri)
            self._file = mlflow_adapter.file_id(self.uri)
            experiment = client.get_experiment_by_name(self.experiment)
            self._look_for_runs(client, bool(experiment))
            if experiment:
                self._experiment_id = experiment.experiment_id
                self._place = str(experiment.artifact_location)
                if experiment.lifecycle_stage == "deleted":
                    text = (self.uri, self.experiment, self._experiment_id)
                    raise TrackerError(mlflow_adapter.deleted_experiment(*text))
            else:
                file = mlflow_adapter.database(self.uri)
                place = mlflow_adapter.artifacts_beside(file, self.experiment) if file else None
                self._experiment_id = client.create_experiment(self.experiment, place)
                client.set_experiment_tag(self._experiment_id, *mlflow_adapter.trials_view())
                made = client.get_experiment(self._experiment_id)
                self._place = str(made.artifact_location)
            self._client = client

    def _look_for_runs(self, client: Any, experiment: bool) -> None:
        """Forgets all if MLflow has lost the study's run, the first: a database that is new, or was
        put back, has none of the others either, or they are found by their tags."""
        known = self._query("SELECT run_id FROM runs WHERE run_id NOT NULL ORDER BY rowid LIMIT 1")
        if known and not (experiment and mlflow_adapter.run_of(client, known[0][0])):
            self.forget()
            log.warning("tracker: it has none of this study's runs any more; all is sent anew")

    def _send_round(self) -> bool:
        """One round over all lanes that need not wait; whether anything was sent.

        Only within a lane does order matter, so that rows of trials side by side go in one call a
        trial. What one lane cannot send holds up no other, but after a failure that may be that of
        the whole tracker no other is tried before the next round, which begins with the others.
        """
        sent = False
        for lane in self._waits.due(self.lanes, self._hurry.is_set()):
            try:
                while not self._stop.is_set() and self._send_some(lane):
                    sent = True
                self._waits.succeeded(lane)
            except Exception as error:
                if self._waits.failed(lane, in_a_line(error)):
                    what = f"files of {lane.run}" if lane.files else lane.run
                    log.warning("tracker: %s waits, it is kept: %s", what, self._waits.error)
                if not isinstance(error, TrackerError):
                    self._client = None  # the experiment is looked at again
                    break
        return sent

    def _send_some(self, lane: Lane) -> bool:
        """Sends the oldest rows of a lane, and removes each when all of it is sent; whether there
        were any."""
        rows = self.rows(ROWS, lane)
        todo = list(calls(rows, LIMITS))
        left = Counter(row.id for call in todo for row in call)
        for call in todo:
            if self._stop.is_set():
                break
            self._send_or_refuse(call)
            left.subtract(row.id for row in call)
            self.done({row.id for row in call if not left[row.id]})
        return bool(rows)

    def _send_or_refuse(self, call: list[Row]) -> None:
        """Sends a call's rows; if they are refused for good, each in a call of its own: one that
        is bad does not take others with it."""
        run_id = self._run_id(call[0].run)  # what is wrong with the run is no fault of a row
        try:
            self._send(run_id, call)
        except Exception as error:
            # At the end of the process, helper threads cannot start: no fault of the row.
            ending = self._stop.is_set() or not threading.main_thread().is_alive()
            if ending or isinstance(error, TrackerError) or not permanent(error):
                raise
            self._check_run(call[0].run, run_id)
            if len(call) > 1:
                for row in call:
                    self._send_or_refuse([row])
            elif self.refuse(call[0], in_a_line(error)):
                log.warning("tracker: refused %s: %s", call[0].run, in_a_line(error))

    def _check_run(self, key: str, run_id: str) -> None:
        """Raises TrackerError if it is the run that takes nothing, or ConnectionError if it is
        its experiment: both can be cured."""
        run = mlflow_adapter.run_of(self._client, run_id)
        if run is None:
            self.forget(key)
            raise TrackerError(f"MLflow has no run {run_id} any more; a new one is made")
        experiment = self._client.get_experiment(self._experiment_id)
        if experiment.lifecycle_stage == "deleted":
            text = (self.uri, self.experiment, self._experiment_id)
            raise ConnectionError(mlflow_adapter.deleted_experiment(*text))
        if run.info.lifecycle_stage == "deleted":
            raise TrackerError(mlflow_adapter.deleted_run(self.uri, run_id))

    def _send(self, run_id: str, rows: list[Row]) -> None:
        """Sends rows of the kind "batch", or one row of another kind."""
        client, row = self._client, rows[0]
        body = row.body
        if row.kind in ("artifact", "delete", "register"):  # MLflow would make their folder anew
            check_artifacts(self.uri, self._place, self.experiment)
        if row.kind == "batch":
            self._send_batch(run_id, rows)
        elif row.kind == "run":
            client.update_run(run_id, "RUNNING", body["name"])
        elif row.kind == "end":
            client.set_terminated(run_id, body["status"], row.time)
        elif row.kind == "artifact":
            path = self.folder / body["path"]
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            send(run_id, str(path), body["artifact_path"])
        elif row.kind == "delete":
            mlflow_adapter.delete_artifacts(client, self.uri, run_id, body["artifact_path"])
        elif row.kind == "dataset":
            self._send_dataset(run_id, body["name"], body["digest"], body["profile"])
        else:
            folder = self.folder / body["folder"]
            result = register(client, run_id, self.servable, body["name"], folder)
            self._write("REPLACE INTO results VALUES (?, ?)", [(row.run, json.dumps(result))])
            log.info("%s", result["alias_text"])

    def _send_batch(self, run_id: str, rows: list[Row]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        items = [(row.time, *item) for row in rows for item in row.body]
        metrics = [Metric(n, v, time, step) for time, sort, n, v, step in items if sort == "metric"]
        params = {name: value for _, sort, name, value, _ in items if sort == "param"}
        tags = {TAGS.get(n, n): value for _, sort, n, value, _ in items if sort == "tag"}
        if TAGS["source"] in tags:
            tags["mlflow.source.type"] = "LOCAL"
        self._client.log_batch(
            run_id,
            metrics,
            [Param(*pair) for pair in params.items()],
            [RunTag(*pair) for pair in tags.items()],
            synchronous=True,
        )

    def _send_dataset(self, run_id: str, name: str, digest: str, profile: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name, digest, "local", json.dumps({"dataset": name}), profile=profile)
        training = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(run_id, [DatasetInput(data, training)])

    def _run_id(self, key: str) -> str:
        """The run of this key, created if MLflow has none with its tag."""
        query = "SELECT name, parent, time, run_id FROM runs WHERE key = ?"
        ((name, parent, start, run_id),) = self._query(query, key)
        if run_id:
            return str(run_id)
        tags = {KEY_TAG: f"{self.id}/{key}"}
        query = f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'"
        stored = self._client.search_runs([self._experiment_id], query, ANY_STAGE, max_results=1)
        if stored and stored[0].info.start_time != start:
            self._set_aside(stored.pop().info.run_id, tags[KEY_TAG])
        if parent:
            tags[PARENT_TAG] = self._run_id(parent)
        if not stored:
            stored = [self._client.create_run(self._experiment_id, start, tags, name)]
        run_id = stored[0].info.run_id
        if parent and stored[0].data.tags.get(PARENT_TAG) != tags[PARENT_TAG]:
            self._client.set_tag(run_id, PARENT_TAG, tags[PARENT_TAG])  # the parent was made anew
        self._write("UPDATE runs SET run_id = ? WHERE key = ?", [(run_id, key)])
        return str(run_id)

    def _set_aside(self, run_id: str, key: str) -> None:
        """Deletes a run, which MLflow can restore, that the outbox has lost, in a power failure or
        with the disk whose copy lay in the bucket: it may be of another network than now, for the
        record lacks its last seconds too."""
        self._client.set_tag(run_id, KEY_TAG, f"{key} (lost)")
        self._client.set_terminated(run_id, "KILLED")
        self._client.delete_run(run_id)
        log.warning("tracker: deleted run %s, begun after the last state this folder has", run_id)


def calls(rows: list[Row], limits: dict[str, int]) -> Iterator[list[Row]]:
    """Rows of one run, in the lists that go in one call: in order, those of the kind "batch" a row
    an item, at most `limits` of each sort, and any other singly."""
    for is_batch, group in groupby(rows, lambda row: row.kind == "batch"):
        if not is_batch:
            yield from ([row] for row in group)
            continue
        items: dict[str, list[Row]] = {sort: [] for sort in limits}
        for row in group:
            for item in row.body:
                items[item[0]].append(row._replace(body=[item]))
        while any(items.values()):
            yield [row for sort, most in limits.items() for row in items[sort][:most]]
            items = {sort: items[sort][most:] for sort, most in limits.items()}


def sync(folder: Path, servable: Servable, timeout: float) -> dict[str, Any]:
    """Sends what a run folder's outbox still holds, in at most `timeout` s, and adds MLflow's
    answers to its summary: {"unsent", "refused", "error"}. Beside a live search it waits for the
    search's own sender. Raises ValueError without an outbox, InputError if it or a champion is
    damaged, TrackerError if the tracker cannot take it."""
    cards, stored = read_cards(folder), Outbox.stored(folder)
    if not stored:
        raise OutboxError(folder / OUTBOX, EMPTY)
    Check(stored["tracking_uri"], stored["experiment"]).result()
    tracker = connect(folder, **stored, servable=servable)
    tracker.start()
    unsent = tracker.close(timeout)
    file = folder / SUMMARY
    summary = json.loads(file.read_text()) if file.is_file() else {}
    if cards and summary.get("champion"):
        champions = [summary["champion"], *summary.get("more_champions", [])]
        for card, told in zip(cards, champions, strict=False):  # an older session had more
            answers = tracker.results(key_of(card))
            told |= {name: answers[name] for name in ANSWERS if name in answers}
        write_summary(folder, summary)
    result = {"unsent": unsent, "refused": tracker.refused, "error": tracker.error}
    return result | {"refusals": tracker.refusals}
