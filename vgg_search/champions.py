"""The champions of a study, by place: chosen, trained one after the other, told to the tracker."""

import logging
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from vgg_search.errors import last_line
from vgg_search.records import METRIC, EpochRow
from vgg_search.storage.checksums import read_cards
from vgg_search.storage.disk import disk_fault
from vgg_search.study.study import Study
from vgg_search.terminal.progress import Progress
from vgg_search.tracking.recorder import Recorder, key_of
from vgg_search.tracking.tracker import ANSWERS, Tracker

if TYPE_CHECKING:
    from vgg_search.data.splits import Splits
    from vgg_search.engine.nodes import Cluster

SCORES = METRIC, "test_accuracy", "test_accuracy_mean", "test_accuracy_std"  # in a summary

log = logging.getLogger("vgg_search")
Card = dict[str, Any]


class Champions:
    """What makes champions of trials, and who is told of it."""

    def __init__(self, study: Study, recorder: Recorder, progress: Progress) -> None:
        self.study, self.recorder, self.progress = study, recorder, progress

    def train(self, splits: "Splits", cluster: "Cluster", facts: Card) -> list[Card]:
        """Their cards, by place: none if the study is stopped, fewer if one failed, of which one
        line is said.

        A resumed study whose best trial is still the same keeps the champion it has: the test split
        is not read again.
        """
        study, cards = self.study, list[Card]()
        crowned, before = study.crowned(), dict(enumerate(read_cards(study.folder), 1))
        if not crowned:
            log.error("no champion: no completed trial has %s", study.config.pick)
        for place, number in enumerate(crowned, 1):
            card = before.get(place)
            if card is None or card["trial"] != number:
                if study.stopping:
                    break
                best = study.optuna.get_trials(deepcopy=False)[number]
                card = self._train(best, splits, cluster, facts, place)
            if card is None:
                break
            cards.append(card)
        return cards

    def _train(
        self, best: FrozenTrial, splits: "Splits", cluster: "Cluster", facts: Card, place: int
    ) -> Card | None:
        from vgg_search.engine.champion import planned_epochs, train_champion

        study, recorder = self.study, self.recorder
        epochs = planned_epochs(best, study.config, splits, cluster.slots())
        recorder.champion_started(best, epochs)
        self.progress.announce(
            f"champion: trial {best.number}'s network, anew on all training images"
        )
        try:
            card = train_champion(study, best, splits, cluster, facts, self._epoch, epochs, place)
        except Exception as error:  # whatever it is, what the search has found is to be told
            if disk_fault(error, study.folder):
                raise
            log.error("the champion failed: %s", last_line(error))
            log.info("where it failed", exc_info=True)
            recorder.champion_lost("failed")
            return None
        if card:
            recorder.champion_ended(card)
        else:
            recorder.champion_lost("interrupted")
        return card

    def _epoch(self, seed: int, epochs: int, row: EpochRow) -> None:
        self.progress.champion(seed, epochs, row)
        if seed == 0:
            self.recorder.champion_row(row)


def champion_summary(card: Card, tracker: Tracker) -> Card:
    """A champion in the summary: its card's main numbers, and what MLflow says of it."""
    metrics, answer = card["metrics"], tracker.results(key_of(card))
    return {
        "trial": card["trial"],
        **{name: metrics.get(name) for name in SCORES},
        "num_params": card["num_params"],
        **{name: answer.get(name) for name in ANSWERS},
    }
