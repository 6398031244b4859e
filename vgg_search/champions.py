"""The champions of a study, by place: chosen, trained one after the other, told to the tracker."""

import logging
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from vgg_search.errors import last_line
from vgg_search.records import METRIC, EpochRow
from vgg_search.storage.checksums import read_cards
from vgg_search.storage.disk import disk_fault
from vgg_search.storage.folder import WORST_IMAGES, champion_folder
from vgg_search.study.study import Study
from vgg_search.terminal.progress import Progress
from vgg_search.tracking.recorder import Recorder, key_of
from vgg_search.tracking.tracker import ANSWERS, Tracker

if TYPE_CHECKING:
    from vgg_search.data.splits import Splits
    from vgg_search.engine.nodes import Cluster
    from vgg_search.training.model import VGG

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

        A resumed study keeps the champions it has, also one that is at another place now: nothing
        is trained again, and the test split is not read again.
        """
        study, cards = self.study, list[Card]()
        crowned, before = study.crowned(), dict(enumerate(read_cards(study.folder), 1))
        if not crowned:
            log.error("no champion: no completed trial has %s", study.config.pick)
        moving = self._moving(crowned, before)
        for place, number in enumerate(crowned, 1):
            card = before.get(place)
            if number in moving:
                card = self._placed(*moving[number], place)
            elif card is None or card["trial"] != number:
                if study.stopping:
                    break
                best = study.optuna.get_trials(deepcopy=False)[number]
                card = self._train(best, splits, cluster, facts, place)
            if card is None:
                break
            cards.append(card)
        return cards

    def _moving(self, crowned: list[int], before: dict[int, Card]) -> dict[int, tuple["VGG", Card]]:
        """Champions of trials whose place is another now, read before their folders are taken."""
        from vgg_search.models.files import load_folder

        return {
            card["trial"]: load_folder(champion_folder(self.study.folder, place))
            for place, card in before.items()
            if card["trial"] in crowned and crowned[place - 1 : place] != [card["trial"]]
        }

    def _placed(self, network: "VGG", card: Card, place: int) -> Card:
        """The champion in the folder of its new place."""
        from vgg_search.models.files import info_of, save_model

        folder = self.study.folder
        card = {k: v for k, v in card.items() if k != "place"}
        card |= {"place": place} if place > 1 else {}
        save_model(champion_folder(folder, place), network, info_of(card), card)
        if place == 1:
            (folder / WORST_IMAGES).unlink(missing_ok=True)  # another's
        if key_of(card) in self.recorder.tracker.keys:
            self.recorder.champion_ended(card)
        return card

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
