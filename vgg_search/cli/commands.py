"""The command line: `vgg-search COMMAND ...`, also `python -m vgg_search COMMAND ...`.

A command takes its command line and returns a Result; `main` prints it. Exit codes: 0 done, 1 the
work failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM. A mistake is one line on stderr; `--debug` shows
where it came from.
"""

import json
import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from vgg_search.cli.arguments import flag, load_config, parse_options, path, resumed_config
from vgg_search.config import Config, ConfigError, Dataset, Positive, validated
from vgg_search.errors import InputError, SearchError, did_you_mean
from vgg_search.machine import lasting_output, silent_libraries, user_environment
from vgg_search.storage.addresses import command
from vgg_search.storage.disk import disk_watched
from vgg_search.storage.folder import JOURNAL, OUTBOX, local_folder, new_name

if TYPE_CHECKING:
    from vgg_search.data.source import DatasetInfo

MOST_COLUMNS = 20  # of a confusion matrix in text, else so many pairs
VERIFIED_IMAGES = 1000  # on which an exported file has to agree
MODEL_HELP = "a run or champion folder, or models:/NAME@ALIAS; without it, the latest champion"
MODEL = flag("--model", help=MODEL_HELP)
STUDY = flag("name", nargs="?", metavar="NAME", help="of the study; without it, the latest")
DATASET = (Dataset | None, Field(None, description="Data set; without it, the model's own."))
EPOCHS = (Positive | None, Field(None, description="Epochs; without it, as many as it had."))


class Result(NamedTuple):
    """What a command has to say, and its exit code."""

    data: dict[str, Any]  # what --json prints
    text: str = ""  # what is printed without it
    problems: Sequence[str] = ()  # lines on stderr
    code: int = 0


def run(argv: Sequence[str]) -> Result:
    """the search, the champion, the report"""
    config, options = load_config(argv)
    resumed = False
    if options.resume is not None:
        config, resumed = resumed_config(config, options.resume)
    if options.dry_run:
        from vgg_search.dry_run import forecast

        return Result(forecast(config))
    from vgg_search import session

    code, summary = session.run(config, resumed, options.quiet)
    return Result(summary, code=code)


def predict(argv: Sequence[str]) -> Result:
    """class and probability of image files"""
    formats = "PNG, JPEG, BMP, WEBP, GIF, TIFF"
    images = flag("images", nargs="+", type=path, metavar="IMAGE", help=formats)
    options = parse_options(predict, argv, [images, MODEL], ["tracking_uri"])
    from vgg_search.finding import load
    from vgg_search.models import evaluation

    model = load(options.model, options.storage_path, options.tracking_uri)
    with silent_libraries():
        rows = evaluation.predict(model, options.images)
    problems = [f"{row['file']} {row['error']}" for row in rows if "error" in row]
    line = "{file}: {class} {probability:.3f} ({assumed})"
    lines = [line.format_map(row) for row in rows if "error" not in row]
    return Result({"predictions": rows}, "\n".join(lines), problems, int(bool(problems)))


def evaluate(argv: Sequence[str]) -> Result:
    """test accuracy, loss, table a class, confusion matrix"""
    options = parse_options(evaluate, argv, [MODEL], ["tracking_uri", "data_dir"], dataset=DATASET)
    from vgg_search.data.splits import load_test
    from vgg_search.finding import find_model
    from vgg_search.models import evaluation

    folder = find_model(options.model, options.storage_path, options.tracking_uri)
    info, digest = _data_of(folder)
    dataset = options.dataset or info.name
    seen = digest if dataset == info.name else None
    images, labels = load_test(dataset, options.data_dir, info.reading, seen)
    scores = evaluation.evaluate(folder, images, labels)
    return Result(scores, _scores_text(scores))


def _scores_text(scores: dict[str, Any]) -> str:
    lines = [f"test accuracy {scores['test_accuracy']:.4f}, loss {scores['test_loss']:.4f}"]
    for row in scores["per_class"]:
        accuracy, precision = (
            "-" if row[name] is None else f"{row[name]:.3f}" for name in ("accuracy", "precision")
        )
        shares = f"accuracy {accuracy} precision {precision}"
        lines.append(f"  {row['class']:<12} {row['images']:>5} images  {shares}")
    names, confusion = [row["class"] for row in scores["per_class"]], scores["confusion"]
    if len(names) > MOST_COLUMNS:  # wider than a screen
        lines.append("most frequent confusions (--json has the whole matrix)")
        pairs = [
            (n, names[i], names[j])
            for i, row in enumerate(confusion)
            for j, n in enumerate(row)
            if i != j and n
        ]
        lines += [
            f"  {n:>5} {true} as {other}"
            for n, true, other in sorted(pairs, reverse=True)[:MOST_COLUMNS]
        ]
        return "\n".join(lines)
    lines.append("confusion (rows: true class, columns: predicted)")
    for name, counts in zip(names, confusion, strict=True):
        lines.append(f"  {name:<12} " + " ".join(f"{count:>5}" for count in counts))
    return "\n".join(lines)


def refine(argv: Sequence[str]) -> Result:
    """the champion trained on: a new version that names its parent"""
    fields = ["tracking_uri", "experiment", "data_dir", "seed"]
    options = parse_options(refine, argv, [MODEL], fields, champion_epochs=EPOCHS)
    from vgg_search.engine.environment import RAY_ENVIRONMENT
    from vgg_search.provenance import provenance

    os.environ.update(RAY_ENVIRONMENT | os.environ)  # before torch, as in a search
    from vgg_search import refine as refinement
    from vgg_search.finding import find_model

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = find_model(options.model, options.storage_path, options.tracking_uri)
    parent = refinement.lineage(options.model, folder, options.tracking_uri)
    out = local_folder(options.storage_path, new_name("refined", options.storage_path))
    tracker = {"tracking_uri": options.tracking_uri, "experiment": options.experiment}
    how = options.champion_epochs, options.seed, options.data_dir
    with disk_watched(out):
        result = refinement.refine(folder, parent, out, tracker, provenance(), _print_epoch, *how)
    if result["champion"] is None:
        problems = ["the loss is not finite any more; the model is as it was"]
        return Result(result, problems=problems, code=1)
    text = _refinement_text(result, options.storage_path)
    return Result(result, text, code=int(result["unsent"] + result["refused"] > 0))


def _print_epoch(epochs: int, row: dict[str, Any]) -> None:
    accuracy = f"train_accuracy {row['train_accuracy']:.4f}"
    print(f"epoch {row['epoch']}/{epochs} {accuracy}", file=sys.stderr)


def _refinement_text(result: dict[str, Any], storage_path: str) -> str:
    champion, parent = result["champion"], result["parent"]["model_uri"]
    later = command(f"vgg-search sync {result['study']}", storage_path)
    return (
        f"{result['study']}: test accuracy {champion['test_accuracy']:.4f} after "
        f"{result['epochs']} epochs, {champion['parent_test_accuracy']:.4f} before ({parent})\n"
        + (champion["alias_text"] or f"not registered yet: {later}")
    )


def export(argv: Sequence[str]) -> Result:
    """the model as a file, verified: safetensors, pt2, onnx or PyTorch's state_dict"""
    flags = [
        MODEL,
        flag("--format", required=True, choices=("safetensors", "pt2", "onnx", "state-dict")),
        flag("--out", required=True, type=path, metavar="PATH"),
    ]
    options = parse_options(export, argv, flags, ["tracking_uri", "data_dir"], dataset=DATASET)
    from vgg_search.data.splits import load_splits
    from vgg_search.finding import find_model
    from vgg_search.models import export as exporting

    folder = find_model(options.model, options.storage_path, options.tracking_uri)
    # Validation images: to compare two files is no reason to read the test split
    info, _ = _data_of(folder)
    dataset = options.dataset or info.name
    splits = load_splits(dataset, options.data_dir, reading=info.reading)
    images = splits.val_images[:VERIFIED_IMAGES]
    result = exporting.export(folder, options.format, options.out, images)
    difference = f"largest difference in a probability {result['max_difference']:.1e}"
    text = f"{options.out}: {result['bytes']:,} bytes, {difference} on {result['images']} images"
    if options.format == "pt2":
        text += "\na pt2 file is a program: load only what you would run (safetensors holds data)"
    return Result(result, text)


def _data_of(folder: Path) -> "tuple[DatasetInfo, str | None]":
    """Of the images that a model was trained on, and their digest where its card has it."""
    from vgg_search.models.files import info_of, load_folder

    _, card = load_folder(folder)
    return info_of(card), card.get("digest")


def report(argv: Sequence[str]) -> Result:
    """a study's report.html, made again"""
    options = parse_options(report, argv, [STUDY])
    folder = _study_folder(options, JOURNAL)
    from vgg_search.report.page import make_report

    with disk_watched(folder):
        page = str(make_report(folder))
    return Result({"report": page}, page)


def status(argv: Sequence[str]) -> Result:
    """a study on one screen, running or not"""
    options = parse_options(status, argv, [STUDY])
    folder = _study_folder(options, JOURNAL)
    from vgg_search.terminal import status as screen
    from vgg_search.tracking.outbox import sending

    state = screen.status(folder, sending(folder))
    return Result(state, screen.show(state))


def sync(argv: Sequence[str]) -> Result:
    """send what MLflow has not yet got"""
    timeout = flag("--timeout", type=float, default=600.0, help="seconds to try (600)")
    options = parse_options(sync, argv, [STUDY, timeout])
    folder = _study_folder(options, OUTBOX)
    from vgg_search.models.files import servable
    from vgg_search.tracking.sender import sync as send

    with disk_watched(folder):
        result = send(folder, servable, timeout=options.timeout)
    text = f"{result['unsent']} rows unsent, {result['refused']} refused"
    problems = [f"refused: {line}" for line in result["refusals"]]
    if result["unsent"]:
        problems.append(f"MLflow has not got all: {result['error']}")
    return Result(result, text, problems, int(bool(problems)))


def _study_folder(options: Namespace, file: str) -> Path:
    """The run folder that a command names, by default the latest that has `file`. Raises
    ConfigError."""
    runs = local_folder(options.storage_path, "")
    if options.name:
        validated(Config, {"name": options.name})  # a path would be another folder's
        folder = runs / options.name
        if not (folder / file).is_file():
            raise ConfigError(f"no study named {options.name} in {runs}")
        return folder
    if latest := max(runs.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime, default=None):
        return latest.parent
    raise ConfigError(f"no study found under {runs}")


COMMANDS: dict[str, Callable[[Sequence[str]], Result]] = {
    function.__name__: function
    for function in (run, predict, evaluate, refine, export, report, status, sync)
}


def _usage() -> str:
    lines = [f"  {name:<10} {function.__doc__}" for name, function in COMMANDS.items()]
    return "\n".join(["usage: vgg-search COMMAND ...; COMMAND --help tells more", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and print its result; returns its exit code."""
    with lasting_output():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    # Its stream is stderr as it is at the time: the live table takes it while it is shown
    if warnings := logging.lastResort:
        logging.basicConfig(handlers=[warnings], format="vgg-search: %(message)s")
    for name in ("HOME", "TMPDIR", "RAY_TMPDIR"):  # empty is as if unset, as for our own variables
        if os.environ.get(name) == "":
            del os.environ[name]
    os.environ.update(user_environment())
    try:
        if argv[0] not in COMMANDS:
            hint = did_you_mean(argv[0], COMMANDS) or f" of {', '.join(COMMANDS)}"
            raise ConfigError(f"unknown command {argv[0]}{hint}")
        result = COMMANDS[argv[0]](argv[1:])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if "--debug" in argv:
            raise
        print(f"vgg-search: {_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    for problem in result.problems:
        print(f"vgg-search: {problem}", file=sys.stderr)
    if "--json" in argv:
        print(json.dumps(result.data))
    elif result.text:
        print(result.text)
    return result.code


def _line(error: Exception) -> str:
    """The error in one line; of one that brings a traceback along, as a worker's, its last."""
    text = str(error).strip()
    text = text.splitlines()[-1] if "Traceback (" in text else " ".join(text.split())
    if not isinstance(error, InputError | SearchError | ConnectionError):
        text = f"{type(error).__name__}: {text} (--debug tells more)"
    return text
