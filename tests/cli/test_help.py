"""What `--help` says: short at first, whole when asked for, of every field, and true."""

import json
import re

import pytest

from vgg_search.cli.arguments import load_config
from vgg_search.cli.commands import COMMANDS, main
from vgg_search.config import GROUPS, MOST_USED, Config


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def flags(text: str) -> list[str]:
    return re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)


def test_the_ten_most_used_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    ten = [f"--{name.lstrip('-')}".replace("_", "-") for name in MOST_USED]
    assert len(ten) == 10
    assert flags(said(capsys, "run", "--help")) == [*ten, "--help", "--help-all"]


def test_every_field_is_under_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "run", "--help-all")
    groups = dict(re.findall(r"^([a-z ]+)\n((?:  .*\n?)+)", text, re.MULTILINE))
    assert list(groups) == ["this command", *GROUPS.values()]
    listed = [flag for group in GROUPS.values() for flag in flags(groups[group])]
    assert listed == [f"--{name}".replace("_", "-") for name in Config.model_fields]
    assert "--sampler" in flags(groups["search"])
    assert "--tracking-uri" in flags(groups["places"])
    assert "--champion-seeds" in flags(groups["champion"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_plain_and_narrow(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, command, "--help") + said(capsys, command, "--help-all")
    assert max(map(len, text.splitlines())) <= 100
    types = r"tuple|(?<!state-)\bdict\b|\blist\[|\bstr\b|\bint\b|float|PosixPath|Undefined"
    assert not re.search(types, text)
    assert text.startswith("usage: ")


def test_examples_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(
        r"^  (--\S+) JSON[^-]*?Example: '(.*)'$",
        said(capsys, "run", "--help-all"),
        re.MULTILINE,
    )
    assert [flag for flag, _ in found] == ["--space", "--baseline", "--enqueue"]
    for flag, example in found:
        config, _ = load_config([flag, example])
        stored = config.model_dump(mode="json")[flag[2:]]
        assert stored == json.loads(example)
