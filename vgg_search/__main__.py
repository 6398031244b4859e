"""The command line: `vgg-search COMMAND ...`, also `python -m vgg_search COMMAND ...`.

Exit codes: 0 done, 1 the work failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM. A mistake is one line on
stderr; `--debug` shows where it came from.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vgg_search.config import ConfigError, parser

Result = tuple[int, dict[str, Any]]
MODEL = "a run or champion folder, or models:/NAME@ALIAS; without it, the latest champion"


def search(argv: Sequence[str]) -> Result:
    """search, champion and report"""
    from vgg_search.run import run

    return run(argv)


def predict(argv: Sequence[str]) -> Result:
    """class and probability of image files"""
    options = _options("predict", argv, images=True)
    from vgg_search import reuse

    model = reuse.load(options.model, options.storage_path, options.tracking_uri)
    rows = reuse.predict(model, options.images)
    for row in rows:
        if "error" in row:
            print(f"vgg-search: {row['error']}", file=sys.stderr)
        elif not options.json:
            print(f"{row['file']}: {row['class']} {row['probability']:.3f} ({row['assumed']})")
    return int(any("error" in row for row in rows)), {"predictions": rows}


def evaluate(argv: Sequence[str]) -> Result:
    """test accuracy, loss, table a class, confusion matrix"""
    options = _options("evaluate", argv, data=True)
    from vgg_search import reuse
    from vgg_search.data import load_test

    folder = reuse.find_model(options.model, options.storage_path, options.tracking_uri)
    dataset = options.dataset or reuse.load_folder(folder)[1].get("dataset", "auto")
    scores = reuse.evaluate(folder, *load_test(dataset, options.data_dir))
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


COMMANDS: dict[str, Callable[[Sequence[str]], Result]] = {
    "run": search,
    "predict": predict,
    "evaluate": evaluate,
}


def _options(command: str, argv: Sequence[str], images: bool = False, data: bool = False) -> Any:
    made = parser(f"vgg-search {command}", str(COMMANDS[command].__doc__).capitalize() + ".")
    if images:
        made.add_argument("images", nargs="+", metavar="IMAGE", help="PNG or JPEG file")
    if data:
        made.add_argument("--data-dir", type=Path, help="folder with Fashion-MNIST")
        made.add_argument("--dataset", choices=("auto", "fashion-mnist", "sample"))
    made.add_argument("--model", help=MODEL)
    made.add_argument("--storage-path", default="runs", help="where run folders are (runs)")
    made.add_argument("--tracking-uri", help="MLflow, for models:/")
    made.add_argument("--json", action="store_true", help="print the result as one JSON line")
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    return made.parse_args(argv)


def _usage() -> str:
    lines = [f"  {name:<10} {made.__doc__}" for name, made in COMMANDS.items()]
    return "\n".join(["usage: vgg-search COMMAND ...; COMMAND --help tells more", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    logging.basicConfig(level=logging.WARNING, format="vgg-search: %(message)s")
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
    except (ValueError, ConnectionError) as error:
        if "--debug" in argv:
            raise
        print(f"vgg-search: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


if __name__ == "__main__":
    sys.exit(main())
