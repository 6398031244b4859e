"""Figures and tables of `bench_trials.py`: figures from its runs, tables from the JSON it kept.

python experiments/trials_page.py results/2026-11-24_trials     # prints the tables; a second
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

OURS, TUTORIAL = "vgg_search", "tutorial"
MODES = ("short", "middle", "startup", "busy")
CELLS = {  # title -> format of a run's figures
    "run": "{round}",
    "stack": "{stack}",
    "trials": "{trials}",
    "wall s": "{wall_seconds:.1f}",
    "after start s": "{after_start_seconds:.1f}",
    "search s": "{search_seconds:.1f}",
    "trials/min": "{trials_per_minute:.1f}",
    "training s a trial": "{training_seconds_per_trial:.3f}",
    "start-up s a trial: median (p90)": "{startup_median:.3f} ({startup_p90:.3f})",
    "slots busy": "{slot_busy_fraction:.1%}",
    "val_accuracy mean (sd)": "{accuracy_mean:.4f} ({accuracy_sd:.4f})",
    "MLflow: finished, other runs, points": "{logged[finished]}, {logged[unfinished]}, "
    "{logged[points]}",
    "load before, after": "{load_before:.1f}, {load_after:.1f}",
}
RATIOS = {
    "wall_seconds": "from process start to process end (this counts)",
    "after_start_seconds": "without interpreter, imports and the start of Ray",
    "search_seconds": "the search alone",
}
MACHINE = (
    "{cpu}, {cores} cores, avx512_bf16 {avx512_bf16}, amx_bf16 {amx_bf16}; Python {python}, "
    "torch {torch}, Ray {ray}, Optuna {optuna}, MLflow {mlflow}."
)


def figures(run: dict[str, Any], slots: int) -> dict[str, Any]:
    """The numbers of one run that are compared."""
    count, trials = len(run["trials"]), run["trials"]
    training = sum(trial["seconds"] for trial in trials)
    values = [trial["val_accuracy"] for trial in trials]
    startups = sorted(trial["startup"] for trial in trials if trial["startup"] is not None)
    kept = "stack wall_seconds after_start_seconds search_seconds startup_median logged".split()
    return {
        **{name: run[name] for name in [*kept, "load_before", "load_after"]},
        "trials": count,
        "epochs": sum(trial["epochs"] for trial in trials),
        "trials_per_minute": 60 * count / run["wall_seconds"],
        "training_seconds_per_trial": training / count,
        "startup_mean": statistics.mean(startups),
        "startup_p90": startups[int(0.9 * len(startups))],
        "first_starts": run.get("first_starts"),
        "slot_busy_fraction": training / (slots * run["search_seconds"]),
        "accuracy_mean": statistics.mean(values),
        "accuracy_sd": statistics.stdev(values),
    }


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours against the tutorial's, round by round, and whether both trained the same."""
    ours, theirs = ([r for r in runs if r["stack"] == stack] for stack in (OURS, TUTORIAL))
    ratios = {
        name: [b[name] / a[name] for a, b in zip(ours, theirs, strict=True)] for name in RATIOS
    }
    key = "{arch}/{lr}".format_map
    differences = []
    for a, b in zip(ours, theirs, strict=True):
        values = {key(trial): trial["val_accuracy"] for trial in b["trials"]}
        differences += [trial["val_accuracy"] - values[key(trial)] for trial in a["trials"]]
    mean, sd = statistics.mean(differences), statistics.stdev(differences)
    return {
        "ratios": ratios,
        "accuracy_difference": mean,
        "accuracy_difference_sd": sd,
        "accuracy_difference_se": sd / math.sqrt(len(differences)),
    }


def section(mode: str, result: dict[str, Any]) -> str:
    """One mode's part: what ran where, a table, and what is compared."""
    size, machine = result["size"], result["environment"]
    lines = [
        f"## {mode}: {size['trials']} trials, {size['epochs']} epoch(s), "
        f"{size['train_images']:,} training and {size['val_images']:,} validation images",
        "",
        f"Command: `{result['command']}`, {result['date']}. Commit {machine['commit']}. "
        f"{MACHINE.format_map(machine)} precision of vgg_search: {result['precision']}.",
        "",
        "| " + " | ".join(CELLS) + " |",
        "| --- " * len(CELLS) + "|",
    ]
    for run in result["runs"]:
        lines.append("| " + " | ".join(form.format_map(run) for form in CELLS.values()) + " |")
    return "\n".join([*lines, "", *comparison(result), *first_starts(result)]) + "\n"


def comparison(result: dict[str, Any]) -> list[str]:
    """Ours against the tutorial stack, round by round, where both ran."""
    if not (both := result["comparison"]):
        return []
    lines = []
    for name, description in RATIOS.items():
        values = ", ".join(f"{value:.2f}" for value in both["ratios"][name])
        lines.append(f"- ratio of trials a minute, {description}: {values}")
    return [
        *lines,
        "- val_accuracy, ours less the tutorial's on the same configuration: mean "
        f"{both['accuracy_difference']:+.4f}, standard error {both['accuracy_difference_se']:.4f}, "
        f"sd {both['accuracy_difference_sd']:.4f}",
    ]


def first_starts(result: dict[str, Any]) -> list[str]:
    return [
        f"- {run['stack']}, run {run['round']}: each worker's first trial began "
        f"{', '.join(f'{seconds:.1f}' for seconds in run['first_starts'])} s after the search; "
        f"start-up of the others: median {run['startup_median']:.3f} s, mean "
        f"{run['startup_mean']:.3f} s, p90 {run['startup_p90']:.3f} s"
        for run in result["runs"]
        if run["first_starts"]
    ]


if __name__ == "__main__":
    for mode in MODES:
        if (kept := Path(sys.argv[1], f"{mode}.json")).exists():
            print(section(mode, json.loads(kept.read_text())))
