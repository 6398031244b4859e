"""The command line: `vgg-search COMMAND ...`, also `python -m vgg_search COMMAND ...`.

Exit codes: 0 done, 1 the work failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM. A mistake is one line
on stderr; `--debug` shows where it came from.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vgg_search.cli.options import count, parse, parser_of, study_of
from vgg_search.config import ConfigError
from vgg_search.errors import InputError
from vgg_search.storage.hints import command
from vgg_search.storage.place import local_folder

Result = tuple[int, dict[str, Any]]
VERIFIED_IMAGES = 1000  # on which an exported file has to agree


def run(argv: Sequence[str]) -> Result:
    """the search, the champion, the report"""
    from vgg_search.session import run

    return run(argv)


def predict(argv: Sequence[str]) -> Result:
    """class and probability of image files"""
    made = parser_of(COMMANDS["predict"])
    made.add_argument("images", nargs="+", metavar="IMAGE", help="PNG or JPEG file")
    options = parse(made, argv)
    from vgg_search.models import reuse

    model = reuse.load(options.model, options.storage_path, options.tracking_uri)
    rows = reuse.predict(model, options.images)
    for row in rows:
        if "error" in row:
            print(f"vgg-search: {row['file']} {row['error']}", file=sys.stderr)
        elif not options.json:
            print(f"{row['file']}: {row['class']} {row['probability']:.3f} ({row['assumed']})")
    return int(any("error" in row for row in rows)), {"predictions": rows}


def evaluate(argv: Sequence[str]) -> Result:
    """test accuracy, loss, table a class, confusion matrix"""
    options = parse(parser_of(COMMANDS["evaluate"], data=True), argv)
    from vgg_search.data.splits import load_test
    from vgg_search.models import reuse

    folder = reuse.find_model(options.model, options.storage_path, options.tracking_uri)
    images, labels = load_test(options.dataset or _dataset(folder), options.data_dir)
    scores = reuse.evaluate(folder, images, labels)
    if not options.json:
        print(f"test accuracy {scores['test_accuracy']:.4f}, loss {scores['test_loss']:.4f}")
        for row in scores["per_class"]:
            shares = " ".join(
                f"{name} {'-' if row[name] is None else format(row[name], '.3f')}"
                for name in ("accuracy", "precision")
            )
            print(f"  {row['class']:<12} {row['images']:>5} images  {shares}")
        print("confusion (rows: true class, columns: predicted)")
        for name, counts in zip(
            (row["class"] for row in scores["per_class"]), scores["confusion"], strict=True
        ):
            print(f"  {name:<12} " + " ".join(f"{count:>5}" for count in counts))
    return 0, scores


def refine(argv: Sequence[str]) -> Result:
    """the champion trained on: a new version that names its parent"""
    made = parser_of(COMMANDS["refine"])
    made.add_argument(
        "--champion-epochs", type=count, metavar="N", help="epochs; without it, as many as it had"
    )
    made.add_argument("--seed", type=int, default=0, help="of shuffling and augmentation (0)")
    made.add_argument("--data-dir", type=Path, help="folder with Fashion-MNIST")
    made.add_argument("--experiment", default="vgg-search", help="MLflow experiment (vgg-search)")
    options = parse(made, argv)
    from vgg_search.engine.connection import RAY_ENVIRONMENT
    from vgg_search.session import provenance

    os.environ.update(RAY_ENVIRONMENT | os.environ)  # before torch, as in a search
    from vgg_search.models import reuse
    from vgg_search.refine import lineage, refine
    from vgg_search.tracking.sender import default_uri

    def listen(epochs: int, row: dict[str, Any]) -> None:
        accuracy = f"train_accuracy {row['train_accuracy']:.4f}"
        print(f"epoch {row['epoch']}/{epochs} {accuracy}", file=sys.stderr)

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    uri = options.tracking_uri or default_uri()
    folder = reuse.find_model(options.model, options.storage_path, uri)
    result = refine(
        folder,
        lineage(options.model, folder, uri),
        local_folder(options.storage_path, datetime.now().strftime("refined-%Y%m%d-%H%M%S.%f")),
        {"tracking_uri": uri, "experiment": options.experiment},
        provenance(),
        listen,
        options.champion_epochs,
        options.seed,
        options.data_dir,
    )
    made_of, told = result["parent"]["model_uri"], result["champion"]
    if told is None:
        print(
            "vgg-search: the loss is not finite any more; the model is as it was", file=sys.stderr
        )
        return 1, result
    if not options.json:
        print(
            f"{result['study']}: test accuracy {told['test_accuracy']:.4f} after "
            f"{result['epochs']} epochs, {told['parent_test_accuracy']:.4f} before ({made_of})"
        )
        later = command(f"vgg-search sync {result['study']}", options.storage_path)
        print(told["alias_text"] or f"not registered yet: {later}")
    return int(result["unsent"] > 0), result


def export(argv: Sequence[str]) -> Result:
    """the model as a file, verified: safetensors, pt2 or onnx"""
    made = parser_of(COMMANDS["export"], data=True)
    made.add_argument("--format", required=True, choices=("safetensors", "pt2", "onnx"))
    made.add_argument("--out", required=True, type=Path, metavar="PATH")
    options = parse(made, argv)
    from vgg_search.data.splits import load_splits
    from vgg_search.models import reuse

    folder = reuse.find_model(options.model, options.storage_path, options.tracking_uri)
    # Validation images: to compare two files is no reason to read the test split
    splits = load_splits(options.dataset or _dataset(folder), options.data_dir)
    images = splits.val_images[:VERIFIED_IMAGES]
    result = reuse.export(folder, options.format, options.out, images)
    if not options.json:
        print(
            f"{options.out}: {result['bytes']:,} bytes, largest difference in a probability "
            f"{result['max_difference']:.1e} on {result['images']} images"
        )
    return 0, result


def report(argv: Sequence[str]) -> Result:
    """a study's report.html, made again"""
    folder, options = study_of(COMMANDS["report"], argv)
    from vgg_search.report.page import make_report

    page = make_report(folder)
    if not options.json:
        print(page)
    return 0, {"report": str(page)}


def status(argv: Sequence[str]) -> Result:
    """a study on one screen, running or not"""
    folder, options = study_of(COMMANDS["status"], argv)
    from vgg_search.terminal.status import show, status

    state = status(folder)
    if not options.json:
        print(show(state))
    return 0, state


def sync(argv: Sequence[str]) -> Result:
    """send what MLflow has not yet got"""
    folder, options = study_of(COMMANDS["sync"], argv)
    from vgg_search.models.reuse import servable
    from vgg_search.refine import complete_summary
    from vgg_search.tracking.sender import sync

    result = sync(folder, servable, timeout=options.timeout)
    complete_summary(folder)
    if not options.json:
        print(f"{result['unsent']} rows unsent, {result['refused']} refused")
    if result["unsent"]:
        print(f"vgg-search: MLflow was not reached: {result['error']}", file=sys.stderr)
    return int(result["unsent"] > 0), result


ALL = (run, predict, evaluate, refine, export, report, status, sync)
COMMANDS: dict[str, Callable[[Sequence[str]], Result]] = {made.__name__: made for made in ALL}


def _dataset(folder: Path) -> str:
    """The data set that a model was trained on."""
    from vgg_search.models.reuse import load_folder

    return str(load_folder(folder)[1].get("dataset", "auto"))


class _Warnings(logging.Handler):
    """Warnings, to whatever is stderr at the time: the live table takes it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _usage() -> str:
    lines = [f"  {name:<10} {made.__doc__}" for name, made in COMMANDS.items()]
    return "\n".join(["usage: vgg-search COMMAND ...; COMMAND --help tells more", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    warnings = _Warnings(logging.WARNING)
    logging.basicConfig(handlers=[warnings], format="vgg-search: %(message)s")
    try:
        if argv[0] not in COMMANDS:
            near = get_close_matches(argv[0], COMMANDS, 1)
            hint = f"; did you mean {near[0]}?" if near else f" of {', '.join(COMMANDS)}"
            raise ConfigError(f"unknown command {argv[0]}{hint}")
        code, result = COMMANDS[argv[0]](argv[1:])
        if "--json" in argv:
            print(json.dumps(result))
        return code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if "--debug" in argv:
            raise
        print(f"vgg-search: {_line(error)}", file=sys.stderr)
        return 2 if _bad_input(error) else 1


def _bad_input(error: Exception) -> bool:
    """Whether it is one of this package's own, which are all about what was given."""
    return isinstance(error, InputError)


def _line(error: Exception) -> str:
    """The error in one line; of one that brings a traceback along, as a worker's, its last."""
    text = str(error).strip()
    text = text.splitlines()[-1] if "Traceback (" in text else " ".join(text.split())
    if not _bad_input(error) and not isinstance(error, ConnectionError):
        text = f"{type(error).__name__}: {text} (--debug tells more)"
    return text
