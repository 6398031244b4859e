"""Which checkpoints of a study stay: the best ones of the top K trials, and no others."""

from vgg_search.storage.folder import BEST
from vgg_search.storage.mirror import Checkpoints
from vgg_search.study.segment import Event
from vgg_search.study.study import Study
from vgg_search.tracking.recorder import run_key
from vgg_search.tracking.tracker import Tracker


class Retention:
    """A listener of the study, before its recorder, which closes the runs. To be started before
    the study is opened, which opens runs. The files that stay do not depend on the tracker.

    What a killed driver did not end is repeated: a deletion is put before the files are removed,
    and a trial counts as kept once its checkpoint has been put.
    """

    def __init__(self, study: Study, checkpoints: Checkpoints, tracker: Tracker) -> None:
        self.study, self.checkpoints, self.tracker = study, checkpoints, tracker
        self.kept: set[int] = set()

    def start(self) -> None:
        """Looks at what is kept, once the recorder has opened what the tracker lacks."""
        # Of a trial whose run is open, the tracker may not have been sent the checkpoint
        kept, open_runs = filter(self.checkpoints.is_kept, self._ended()), self.tracker.open_runs
        self.kept = {number for number in kept if run_key(number) not in open_runs}

    def _ended(self) -> set[int]:
        trials = self.study.optuna.get_trials(deepcopy=False)
        return {trial.number for trial in trials if trial.state.is_finished()}

    def __call__(self, event: Event) -> None:
        if event.kind == "ended":
            self._update({event.number})

    def catch_up(self) -> None:
        """Does what a killed driver had only recorded, once the study is open."""
        present = self.checkpoints.numbers() & self._ended()
        if left := present - self.kept.intersection(self.study.ranking.top()):
            self._update(left)

    def _update(self, ended: set[int]) -> None:
        top = set(self.study.ranking.top())
        for loser in (self.kept | ended) - top:
            if loser in self.kept or self.checkpoints.is_kept(loser):
                self.tracker.delete_artifact(run_key(loser), BEST)
            self.checkpoints.drop(loser)
        for winner in top - self.kept:
            self.tracker.artifact(run_key(winner), self.checkpoints.keep(winner), BEST)
        self.kept = top
