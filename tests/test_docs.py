"""What the README and its neighbours say of files, names and versions is so."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from test_rooms import HEAVY, LEVELS, LOADS

import vgg_search
from vgg_search.records import BEST_METRIC, EPOCH_METRICS, State
from vgg_search.storage import folder

PACKAGE = Path(vgg_search.__file__).parent
ROOT = PACKAGE.parent
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("*/**/README.md"))
    if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
)
MAP = (PACKAGE / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """A part of the map, by its heading."""
    return MAP.split(f"\n## {title}\n")[1].split("\n## ")[0]


def in_backticks(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def first_column(table: str) -> set[str]:
    """What stands in backticks in the first column of a table."""
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in in_backticks(row.split("|")[1])}


def test_the_readme_is_one_page() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    files = [link.partition("#")[0] for link in links if "://" not in link]
    assert [file for file in files if file and not (page.parent / file).exists()] == []


def test_python_in_the_readme_is_python() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        for name in re.findall(r"vgg_search\.(\w+)", block):
            assert name in vgg_search.__all__


def rooms_of_the_map() -> dict[str, tuple[int, str]]:
    """Room -> its level, and what is said that it loads."""
    rows = [line.split("|") for line in section("Rooms").splitlines() if re.match(r"\| \d", line)]
    return {
        name.rstrip("/").removesuffix(".py"): (int(level), loads)
        for _, level, names, _, loads, _ in rows
        for name in in_backticks(names)
    }


def test_the_map_has_the_rooms_and_levels_that_are_tested() -> None:
    levels = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
    assert {room: level for room, (level, _) in rooms_of_the_map().items()} == levels


def test_the_map_says_what_a_room_loads() -> None:
    told = {
        room: loads.partition(";")[0].lower() for room, (_, loads) in rooms_of_the_map().items()
    }
    words = {room: set(re.findall(r"\w+", text)) & set(HEAVY) for room, text in told.items()}
    assert {room: words[room] for room in LOADS} == LOADS


def test_the_map_names_files_that_are_there() -> None:
    doors = section("To add something")
    names = {name for name in in_backticks(doors) if name.endswith(".py")}
    missing = [name for name in names if not any(PACKAGE.glob(f"**/{name}"))]
    assert missing == []


def test_the_map_has_every_file_of_a_run_folder() -> None:
    names = {
        value.rstrip("/")
        for name, value in vars(folder).items()
        if name.isupper() and isinstance(value, str)
    }
    table = section("A run folder")
    assert [name for name in names - {folder.RUNS, folder.LOCK} if name not in table] == []


def test_the_map_has_every_state_and_metric() -> None:
    assert first_column(section("States of a trial")) == set(get_args(State))
    assert {*EPOCH_METRICS, BEST_METRIC} <= first_column(section("Metrics"))


def test_one_version_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', project, flags=re.MULTILINE)
    assert version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version[1]
    assert citation["cff-version"] == "1.2.0"
    assert f"\n## {version[1]} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
