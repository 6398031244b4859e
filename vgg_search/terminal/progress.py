"""What the terminal shows during a search: a live table, or a line an event where it is piped."""

import logging
import time
from collections import Counter
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vgg_search.errors import last_line
from vgg_search.records import METRIC, UNTRAINED, EpochRow
from vgg_search.space.arch import as_arch, describe
from vgg_search.storage.addresses import command, resume_command
from vgg_search.storage.folder import REPORT, RUNS
from vgg_search.study.segment import Event
from vgg_search.study.study import Study
from vgg_search.terminal.formats import accuracy, duration
from vgg_search.terminal.notebook import NotebookDisplay, in_notebook

REFRESH_SECONDS = 0.25
ERROR_LENGTH = 100  # characters of it that are shown; the report and the record have it all
log = logging.getLogger(__name__)


class Progress:
    """Listens to a study and draws it. Owns the terminal while it is entered."""

    def __init__(self, study: Study, quiet: bool = False) -> None:
        self.study, self.quiet = study, quiet
        self.console = Console(stderr=True, highlight=False)
        record = study.optuna.get_trials(deepcopy=False)  # of a study that is gone on with
        self.ended = Counter(t.user_attrs["state"] for t in record if t.state.is_finished())
        self.rows: dict[int, dict[str, Any]] = {}  # live trial -> what its line shows
        self.live: Live | NotebookDisplay | None = None
        self._drawn, self._shows_trials = 0.0, True

    def __enter__(self) -> "Progress":
        if not self.quiet and in_notebook():
            self.live = NotebookDisplay()
        elif not self.quiet and self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.live:
            if self._shows_trials and kind is None:
                self._drawn = 0.0
                self.draw()  # a notebook keeps the last state
            self.live.stop()
            self.live = None

    def say(self, line: str) -> None:
        """Print one line above the table, and log it."""
        log.info(line)
        if not self.quiet:
            self.console.print(line, markup=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        name = describe(as_arch(event.attrs["arch"]))
        shown = self.rows.setdefault(event.number, {"arch": name})
        shown |= {"state": event.kind, "lr": event.attrs["candidate"]["lr"]}
        line = f"trial {event.number} {name}"
        if event.row:
            value = event.row[METRIC]
            shown |= {"epoch": event.row["epoch"], "value": value}
            line += f": epoch {event.row['epoch']} {METRIC} {accuracy(value)}"
        elif event.kind in ("ended", "skipped"):
            state = event.attrs["state"]
            self.ended[state] += 1
            del self.rows[event.number]
            line += f": {state}" + (f" at {accuracy(shown['value'])}" if "value" in shown else "")
            if event.attrs.get("error"):
                said = last_line(event.attrs["error"])
                line += f" ({shorten(said, ERROR_LENGTH, placeholder=' …')})"
        else:
            line += f": {event.kind}"
        if self.live and not event.attrs.get("error"):
            log.info(line)  # the table shows it
        else:
            self.say(line)

    def champion(self, seed: int, epochs: int, row: EpochRow) -> None:
        """One epoch of the champion's training."""
        line = f"champion, seed {seed}: epoch {row['epoch']}/{epochs}"
        self.announce(line + f" train_accuracy {accuracy(row['train_accuracy'])}")

    def announce(self, line: str) -> None:
        """What goes on after the search, in the table's place."""
        if self.live:
            log.info(line)
            self._shows_trials = False
            self.live.update(Text(line, style="bold"), refresh=True)
        else:
            self.say(line)

    def draw(self) -> None:
        """Refresh the table, at most four times a second."""
        if self.live and time.monotonic() - self._drawn >= REFRESH_SECONDS:
            self._drawn = time.monotonic()
            self.live.update(Group(*self._headlines(), self._table()), refresh=True)

    def _headlines(self) -> list[Text]:
        """What there is, and where it is heading: two lines, cut where the terminal ends."""
        study = self.study
        counts = [f"{self.done} of {study.config.num_trials} trials", f"{len(self.rows)} open"]
        counts += [f"{count} {state}" for state, count in sorted(self.ended.items())]
        course = [f"{duration(study.budget.clock)} gone", self.left()]
        if study.ranking.incumbent:
            value, number = study.ranking.incumbent
            course.insert(0, f"best {METRIC} {accuracy(value)} (trial {number})")
        if study.converged:
            course = [course[0], f"converged: {study.converged}"]
        lines = (f"{study.folder.name}: " + " · ".join(counts), " · ".join(filter(None, course)))
        return [Text(line, "bold", no_wrap=True, overflow="ellipsis") for line in lines]

    @property
    def done(self) -> int:
        """Trials that have ended, of those that count."""
        return sum(n for state, n in self.ended.items() if state not in UNTRAINED)

    def left(self) -> str:
        """Trials that there will be and time left, by budget or pace, whichever ends first."""
        study, budget = self.study, self.study.budget
        if not budget.epochs:
            seconds = study.config.time_budget
            left = max(0.0, (seconds or 0.0) - budget.clock)
            return "" if seconds is None else f"at most {duration(left)} left"
        # Epochs of a trial: the mean of those that rest, and what a scheduler expects as one more
        busy = [n for n in study.unfinished if n not in study.scheduler.waiting]
        under_way, resting = sum(len(study.rows(n)) for n in busy), study.trained - len(busy)
        mean = (study.scheduler.expected_epochs + budget.epochs - under_way) / (1 + resting)
        pace, device_pace = budget.clock / budget.epochs, budget.device_seconds / budget.epochs
        trials, seconds = budget.outlook(mean, pace, device_pace, resting, under_way)
        # Those that have begun are there already, however little of a budget is left
        trials = max(study.trained, min(study.config.num_trials, round(trials)))
        return f"about {trials} trials, {duration(seconds)} left"

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column, justify in (
            ("trial", "right"),
            ("arch", "left"),
            ("lr", "right"),
            ("epoch", "right"),
            (METRIC, "right"),
            ("state", "left"),
        ):
            # Where the terminal is narrow the arch is cut, and nothing goes on two lines
            table.add_column(column, justify=justify, no_wrap=column != "arch")  # type: ignore[arg-type]
        # Those that wait are many with asha-promote, and what does not fit on the screen is cut
        for number, row in sorted(
            self.rows.items(), key=lambda item: (item[1]["state"] == "waiting", item[0])
        ):
            epochs = f"{row.get('epoch', 0)}/{self.study.config.max_epochs}"
            value = accuracy(row.get("value"))
            state = "running" if row["state"] in ("epoch", "started") else row["state"]
            table.add_row(str(number), row["arch"], f"{row['lr']:.4g}", epochs, value, state)
        return table


def closing(summary: dict[str, Any], folder: Path, viewed_by: str, storage_path: str = RUNS) -> str:
    """What came out, and what to do next. `viewed_by` shows the trials in the tracker."""
    states = {name: n for name, n in summary["trials"].items() if n}
    lines = [
        f"study {summary['study']} {summary['state']}: {summary['num_trials']} trials ("
        + ", ".join(f"{n} {name}" for name, n in states.items())
        + f"), {summary['epochs_trained']} epochs in {duration(summary['search_seconds'])}"
    ]
    if summary["best_trial"] is not None:
        arch, base = describe(as_arch(summary["best_arch"])), summary["baseline_val_accuracy"]
        after = "" if base is None else f" after epoch {summary['baseline_epochs']}"
        lines.append(
            f"best      trial {summary['best_trial']}, {arch}, lr {summary['best_lr']:.4g}: "
            f"{METRIC} {accuracy(summary['best_val_accuracy'])} "
            f"(baseline {accuracy(base)}{after})"
        )
    if summary.get("converged"):
        lines.append(f"converged more trials do not pay: {summary['converged']}")
    if front := summary.get("front"):
        lines.append(_front_line(front))
    for champion in (summary["champion"], *summary.get("more_champions", ())):
        lines += _champion_lines(champion) if champion else []
    lines += [f"warning   {text}" for text in summary["warnings"]]
    sync = command(f"vgg-search sync {summary['study']}", storage_path)
    if summary["refused"]:
        refused = f"MLflow refused {summary['refused']} rows for good"
        lines.append(f"warning   {refused}: {sync} tells which")
    if summary.get("unsent"):
        lines.append(f"warning   {summary['unsent']} rows are not in MLflow yet: {sync}")
    if summary["state"] == "interrupted":
        lines.append(f"go on     {resume_command(summary['study'], storage_path)}")
    lines.append(f"report    {folder / REPORT}")
    lines.append(f"compare   {viewed_by}")
    if why_not := summary.get("none_completed"):
        lines.append(f"failed    {why_not}")
    if summary["champion"]:
        lines.append(f"use       {command('python -m vgg_search predict IMAGE.png', storage_path)}")
    return "\n".join(lines)


def _front_line(front: list[dict[str, Any]]) -> str:
    sizes, knee = [row["num_params"] for row in front], next(row for row in front if row["knee"])
    return (
        f"front     {len(front)} trials, {min(sizes):,} to {max(sizes):,} parameters; its knee is "
        f"trial {knee['number']}, {knee['arch']}: {METRIC} {accuracy(knee[METRIC])}, "
        f"{knee['num_params']:,} parameters"
    )


def _champion_lines(champion: dict[str, Any]) -> list[str]:
    spread = champion.get("test_accuracy_std")
    mean = accuracy(champion.get("test_accuracy_mean"))
    spread = f"; mean of its seeds {mean}, spread {spread:.4f}" if spread is not None else ""
    where = f", registered as {champion['model_uri']}" if champion["model_uri"] else ""
    score = f"test_accuracy {accuracy(champion['test_accuracy'])}"
    lines = [f"champion  {score}, {champion['num_params']:,} parameters{where}{spread}"]
    alias = champion.get("alias_text")
    return lines + ([f"alias     {alias}"] if alias else [])
