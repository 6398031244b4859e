"""The help of a command, out of the fields and flags themselves: grouped, with plain types."""

import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vgg_search.config import GROUPS, MOST_USED, Fields

WIDTH, INDENT = 100, 30  # characters; where the texts begin
WORDS = {bool: "true|false", int: "N", float: "X", str: "TEXT", Path: "FOLDER"}
Entry = tuple[str, str, Sequence[str]]  # a flag with what it takes, its text, its examples
Flag = tuple[str, dict[str, Any]]


def help_text(
    prog: str, about: str, flags: Sequence[Flag], schema: type[Fields], everything: bool
) -> str:
    """What `--help` prints, of a search only what is used most unless `everything` is asked for."""
    positional = [
        f"[{settings['metavar']}]" if settings.get("nargs") == "?" else f"{settings['metavar']} ..."
        for name, settings in flags
        if not name.startswith("-")
    ]
    own = {name: _flag_entry(name, settings) for name, settings in flags}
    fields = {name: _field_entry(name, field) for name, field in schema.model_fields.items()}
    lines = [f"usage: {' '.join([prog, *positional, '[flags]'])}", "", *wrap(about, WIDTH), ""]
    if not set(MOST_USED) <= fields.keys() | own.keys():
        return "\n".join(lines + list(_lines([*own.values(), *fields.values(), HELP])))
    if not everything:
        entries = [(own | fields)[name] for name in MOST_USED]
        return "\n".join([*lines, "most used", *_lines([*entries, HELP, HELP_ALL])])
    groups = {"this command": [*own.values(), HELP, HELP_ALL]}
    for name, entry in fields.items():
        if name in GROUPS:
            groups[GROUPS[name]] = group = []
        group.append(entry)
    for title, entries in groups.items():
        lines += [title, *_lines(entries), ""]
    return "\n".join(lines[:-1])


HELP, HELP_ALL = ("--help, -h", "This text.", ()), ("--help-all", "All flags.", ())


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    for flag, text, examples in entries:
        parts = wrap(text, WIDTH - INDENT) + [f"Example: '{example}'" for example in examples]
        if len(flag) + 4 > INDENT:
            yield f"  {flag}"
        else:
            yield f"  {flag:<{INDENT - 2}}{parts.pop(0)}"
        yield from (f"{'':<{INDENT}}{part}" for part in parts)


def _flag_entry(name: str, settings: dict[str, Any]) -> Entry:
    takes = settings.get("metavar") or "|".join(settings.get("choices", ()))
    if not takes and "action" not in settings:
        takes = WORDS[settings.get("type", str)]
    text = settings.get("help", "")
    shown = takes if not name.startswith("-") else f"{name} {takes}".rstrip()
    return shown, f"{text[:1].upper()}{text[1:]}." if text else "Needed.", ()


def _field_entry(name: str, field: FieldInfo) -> Entry:
    text = str(field.description)
    if field.default not in (None, PydanticUndefined) and not field.examples:
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        text += f" ({default})"
    word = next((m for m in field.metadata if isinstance(m, str)), None)
    return (
        f"--{name.replace('_', '-')} {word or plain_type(field.annotation)}",
        text,
        field.examples or (),
    )


def plain_type(annotation: Any) -> str:
    """What a flag takes, in a word: N, X, TEXT, FOLDER, its choices, or a word of the field's own
    type (a string among its metadata)."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next((m for m in parts[1:] if isinstance(m, str)), None) or plain_type(parts[0])
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return "|".join(plain_type(part) for part in parts if part is not type(None))
    return WORDS[annotation]
