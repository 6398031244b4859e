"""One search: which trial to train next and how far, and what became of each.

The journal is the only truth; rungs, queues and counts are rebuilt from it. A trial is trained in
segments, "number N until epoch E": a new, a promoted, a retried and a resumed trial are the same
thing. A worker is whoever calls `propose`, `report` for each epoch, and `segment_ended`.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from vgg_search.config import Config
from vgg_search.errors import InputError
from vgg_search.objectives import within
from vgg_search.records import METRIC, UNTRAINED, UNUSABLE, EpochRow, diverged
from vgg_search.space.arch import as_arch
from vgg_search.space.dimension import AnySpace
from vgg_search.storage.folder import FolderLock
from vgg_search.study import record
from vgg_search.study.budget import Budget
from vgg_search.study.convergence import Outlook, outlook
from vgg_search.study.optuna_adapter import attributes, draw_again, reattach
from vgg_search.study.ranking import Ranking
from vgg_search.study.sampling import PROPOSING, VALUES_ONLY, make_sampler, trial_seed
from vgg_search.study.schedulers import STOP, WAIT, make_scheduler
from vgg_search.study.segment import Event, EventKind, Listener, Segment
from vgg_search.study.warm_start import DIGEST, KNOWN, as_trials

FINISHED: Literal["finished"] = "finished"
# Study attributes: what a resume may have changed and decides how far the search goes
NUM_TRIALS, CONVERGES = "num_trials", "stop_when_converged"
RETRIES = 2  # of a segment whose worker died
UNTRAINED_IN_A_ROW = 200  # proposals that need no training, before the space counts as exhausted


class Study:
    """The one writer of a study's journal; `facts` are kept there as the study's attributes.

    `space`: another than the experiment's, of whatever it is that is searched.

    Raises FolderInUseError if another process holds the run folder, StudyError if the study began
    on other data, and JournalDamagedError.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        listeners: Iterable[Listener] = (),
        facts: Mapping[str, Any] | None = None,
        space: AnySpace | None = None,
    ) -> None:
        self.folder, self.config, self.listeners = folder, config, list(listeners)
        self.space = space or config.search_space
        self._facts = {**(facts or {}), NUM_TRIALS: config.num_trials}
        self._lock = FolderLock(folder)
        try:
            self.optuna, self._storage = record.open_journal(folder, config.objectives)
            self._check_data()
        except InputError:
            self._lock.release()
            raise
        if config.stop_when_converged or CONVERGES in self.optuna.user_attrs:
            self._facts[CONVERGES] = config.stop_when_converged
        self.scheduler = make_scheduler(config)
        self.running: dict[int, Segment] = {}
        self.budget = Budget(config)
        self.ranking = Ranking(config.top_k, several=len(config.objectives) > 1)
        self.trained = 0  # trials that count against num_trials, live ones too
        self.stopping = False  # set from outside: propose nothing more
        self.finished = False  # nothing is left to propose
        self._untrained_in_a_row = 0
        self._live: dict[int, optuna.Trial] = {}  # queued, running or waiting
        self._queue: deque[Segment] = deque()
        self._deaths: Counter[int] = Counter()
        self._rows: dict[int, dict[int, EpochRow]] = {}  # none of what has ended: the record has it
        self._done: dict[Any, int] = {}  # by candidate

    def _check_data(self) -> None:
        """Values of two data sets would be ranked as one, and validation images trained on."""
        began_on, digest = self.optuna.user_attrs.get(DIGEST), self._facts.get(DIGEST)
        if began_on and digest and began_on != digest:
            raise record.StudyError(
                f"a resumed study's data must be what it began on ({began_on}), got {digest}"
            )

    def open(self) -> None:
        """Enqueue a new study's first trials, or take up an old one where its record ends."""
        attrs = self.optuna.user_attrs
        for key, value in self._facts.items():
            if attrs.get(key) != value:
                self.optuna.set_user_attr(key, value)
        rows = self._facts.get(KNOWN) or attrs.get(KNOWN, [])
        self._storage.warm_start = as_trials(self.config.search_space, rows)
        trials = self.optuna.get_trials(deepcopy=False)
        for i, trial_by_hand in enumerate(self.config.trials_by_hand):
            if i >= len(trials):  # all of them, or those that a stop kept from being enqueued
                params, arch = self.space.enqueued(trial_by_hand)
                marks: dict[str, Any] = {"by_hand": True} | ({"given_arch": arch} if arch else {})
                marks |= {"baseline": True} if i == 0 and self.config.baseline is not None else {}
                self.optuna.enqueue_trial(params, user_attrs=marks)
        for trial in trials:
            if trial.state is not TrialState.WAITING:
                self._restore(trial)
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                self._reattach(trial)
        self.prune_unpromotable()

    def _restore(self, trial: FrozenTrial) -> None:
        number, state = trial.number, trial.user_attrs.get("state")
        self._rows[number] = rows = record.rows_by_epoch(trial)
        self.budget.restore(rows.values())
        if state in UNTRAINED:
            self._untrained_in_a_row += 1
            return
        if "until" in trial.user_attrs:
            self._untrained_in_a_row = 0
        self.trained += 1
        if state not in UNUSABLE and rows:
            costs = record.costs_of(trial.user_attrs, self.config.objectives)
            self.scheduler.restore(number, trial.intermediate_values.items(), costs)
        if trial.state is not TrialState.RUNNING:
            self._finished(number, trial.user_attrs, record.value_of(trial))
            self._rows[number] = {}

    def _reattach(self, recorded: FrozenTrial) -> None:
        number, attrs = recorded.number, recorded.user_attrs
        # A new object lets the sampler propose: of use for the last trial at most
        self._set_sampler(number, "random" if "until" in attrs else self.config.sampler)
        with self._sampling():
            self._live[number] = trial = reattach(self.optuna, recorded)
        rows = self._rows[number]
        if "state" in attrs:  # stopped between saying how it ended and telling so
            self._tell(number, attrs["state"], attrs.get("error"))
        elif "until" not in attrs:  # stopped while it was proposed
            draw_again(trial, recorded)
            if segment := self._prepare(trial):
                self._queue.append(segment)
        elif rows and diverged(rows[max(rows)]):
            self._tell(number, "diverged")
        else:
            self._announce("started", number)
            if attrs["until"] in rows:
                self._arrived(number, attrs["until"])
            else:
                self._queue.append(self._segment(number, attrs["until"]))

    def close(self) -> None:
        """End a finished search: trials that wait at a rung now were never promoted."""
        self._never_promoted(list(self.scheduler.waiting))

    def prune_unpromotable(self) -> None:
        """End trials that wait at a rung and cannot be promoted within `num_trials` any more."""
        to_come = max(0, self.config.num_trials - self.trained)
        self._never_promoted(self.scheduler.unpromotable(self._live, to_come))

    def _never_promoted(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self.scheduler.waiting[number]
            self._tell(number, "pruned")

    def release(self) -> None:
        """Let another driver have the run folder."""
        self._lock.release()

    @property
    def converged(self) -> Outlook | None:
        """Why more trials would not pay, where the search is to stop then."""
        if not self.config.stop_when_converged:
            return None
        # Those that there are: the bundled sample has fewer than an experiment may ask for
        images = self.config.data.val_images
        ahead = outlook((vector[0] for vector in self.ranking.completed.values()), images)
        return ahead if ahead and ahead.gain <= ahead.noise else None

    @property
    def unfinished(self) -> list[int]:
        """Trials that `--resume` goes on with."""
        return sorted(self._live)

    def propose(self) -> Segment | Literal["finished"] | None:
        """The next segment; None while only a running trial can bring one; FINISHED at the end."""
        blocked = self.stopping or any(segment.alone for segment in self.running.values())
        if not blocked and (segment := self._next()):
            self.running[segment.number] = segment
            return segment
        self.finished = not (self.running or self.stopping)
        return None if self.running else FINISHED

    def _next(self) -> Segment | None:
        if self._queue:
            return None if self._queue[0].alone and self.running else self._queue.popleft()
        if self.converged:
            return None
        promoted = self.scheduler.promotable()
        while (
            promoted is None
            and self.trained < self.config.num_trials
            and self._untrained_in_a_row < UNTRAINED_IN_A_ROW
        ):
            if segment := self._ask():
                return segment
        if promoted is None and not self.running:
            promoted = self.scheduler.promotable(closing=True)
        if promoted is None:
            return None
        self._announce("promoted", promoted[0])
        return self._segment(*promoted)

    def _set_sampler(self, number: int, kind: str) -> None:
        """Trial `number` is proposed by a sampler that depends on the record and its seed alone."""
        seed = trial_seed(self.config.seed, number, PROPOSING)
        self.optuna.sampler = make_sampler(kind, seed, self.space, self.scheduler.epochs)

    def _sampling(self) -> AbstractContextManager[None]:
        """While it proposes, the sampler is shown who waits at a rung as pruned there."""
        values_only = self.config.sampler in VALUES_ONLY
        return self._storage.sampling(self.scheduler.waiting, values_only)

    def _ask(self) -> Segment | None:
        number = len(self._rows)  # the next that is not waiting in Optuna's queue
        self._set_sampler(number, self.config.sampler)
        with self._sampling():
            trial = self.optuna.ask()
        self._live[trial.number], self._rows[trial.number] = trial, {}
        self.trained += 1
        return self._prepare(trial)

    def _prepare(self, trial: optuna.Trial) -> Segment | None:
        """Let a trial be sampled; None if there is nothing to train: the trial is ended."""
        arch = attributes(trial).get("given_arch")
        with self._sampling():
            candidate = self.space.sample(trial, arch and as_arch(arch))
        seed = trial_seed(self.config.seed, trial.number)
        for key, value in ({"seed": seed} | self.space.describe(candidate)).items():
            trial.set_user_attr(key, value)
        # A trial by hand is trained whatever it costs
        excess = {} if attributes(trial).get("by_hand") else self.space.excess(candidate)
        twin = self._done.get(candidate)
        if twin is None and all(value <= 0 for value in excess.values()):
            self._untrained_in_a_row = 0
            self._announce("started", trial.number)
            return self._segment(trial.number, self.scheduler.epochs[0])
        self.trained -= 1
        self._untrained_in_a_row += 1
        if twin is None:
            record.constrain(trial, excess)
        else:
            trial.set_user_attr("duplicate_of", twin)
        self._tell(trial.number, "infeasible" if twin is None else "duplicate")
        return None

    def _segment(self, number: int, until: int) -> Segment:
        trial = self._live[number]
        attrs = attributes(trial)
        if attrs.get("until") != until:
            trial.set_user_attr("until", until)
        last_epoch = max(self._rows[number], default=0)
        candidate = self.space.kind.from_dict(attrs["candidate"])
        keep_above = self.ranking.keep_above()
        return Segment(number, candidate, attrs["seed"], until, last_epoch, keep_above)

    def report(self, number: int, row: EpochRow) -> None:
        """Record one epoch's row, unless it is there already (a worker repeats it on resume)."""
        epoch, rows, trial = row["epoch"], self._rows[number], self._live[number]
        if epoch in rows:
            return
        rows[epoch] = row = row | {"time": self.budget.clock}
        self.budget.spend(row["epoch_seconds"])
        record.write_row(trial, row)
        self._announce("epoch", number, row)

    def segment_ended(self, number: int, state: str = "reached", error: str | None = None) -> None:
        """A worker is done with a segment: it reached its end, diverged, failed, oom or died."""
        segment = self.running.pop(number)
        if state == "reached":
            self._arrived(number, segment.until)
        elif state == "died" and self._deaths[number] < RETRIES:
            self._deaths[number] += 1
            self._queue.appendleft(self._segment(number, segment.until))
            self._announce("retried", number)
        elif state == "oom" and not segment.alone:
            self._queue.append(replace(self._segment(number, segment.until), alone=True))
            self._announce("retried", number)
        else:
            self._tell(number, state if state == "diverged" else "failed", error)
        self.prune_unpromotable()

    def _arrived(self, number: int, epoch: int) -> None:
        attrs, value = attributes(self._live[number]), self._rows[number][epoch][METRIC]
        costs = record.costs_of(attrs, self.config.objectives)
        verdict = self.scheduler.arrived(number, epoch, value, costs)
        if "baseline" in attrs and epoch < self.config.max_epochs:
            verdict = self.scheduler.exempt(number, epoch)  # or nothing compares with it
        if verdict == WAIT:
            self._announce("waiting", number)
        elif verdict == STOP:
            self._tell(number, "completed" if epoch == self.config.max_epochs else "pruned")
        else:
            self._queue.appendleft(self._segment(number, int(verdict)))

    def _tell(self, number: int, state: str, error: str | None = None) -> None:
        trial, value = self._live[number], None
        attrs = attributes(trial)
        costs = record.costs_of(attrs, self.config.objectives)
        if state == "duplicate":
            twin = self.optuna.get_trials(deepcopy=False)[attrs["duplicate_of"]]
            record.copy_values(trial, twin)
            value = record.value_of(twin)
        if error:
            trial.set_user_attr("error", error)
        trial.set_user_attr("state", state)
        if state in UNUSABLE:
            record.constrain(trial, {"infeasible": 1.0})
            self.scheduler.forget(number)
        if state == "completed":
            value = self._rows[number][self.config.max_epochs][METRIC]
        record.tell(self.optuna, trial, None if value is None else (value, *costs))
        if state not in UNTRAINED:
            self._finished(number, attrs, value)
        self._announce("skipped" if state in UNTRAINED else "ended", number)
        del self._live[number]
        self._rows[number] = {}

    def _finished(self, number: int, attrs: dict[str, Any], value: float | None) -> None:
        candidate = self.space.kind.from_dict(attrs["candidate"])
        self._done[candidate] = min(number, self._done.get(candidate, number))
        costs = record.costs_of(attrs, self.config.objectives)
        self.ranking.add(number, attrs["state"], self._rows[number].values(), value, costs)

    def crowned(self) -> list[int]:
        """The trials that are to become champions, by place; fewer than asked for where few were
        completed, or `pick` lets few."""
        trials, pick = self.optuna.get_trials(deepcopy=False), self.config.pick
        able = [n for n in self.ranking.completed if within(pick, trials[n].user_attrs)]
        return self.ranking.best_of(able, pick)[: self.config.champions]

    def rows(self, number: int) -> list[EpochRow]:
        """A trial's rows so far, in order."""
        rows = self._rows[number]
        if not rows:
            rows = record.rows_by_epoch(self.optuna.get_trials(deepcopy=False)[number])
        return [row for _, row in sorted(rows.items())]

    def _announce(self, kind: EventKind, number: int, row: EpochRow | None = None) -> None:
        event = Event(kind, number, {**attributes(self._live[number])}, row)
        for listener in self.listeners:
            listener(event)
