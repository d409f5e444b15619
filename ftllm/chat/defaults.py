"""The settings file: how conversations begin, and named presets. TOML in the user's configuration directory.

temperature = 0.6
theme = "nord"
endpoints = ["http://gpu-box:8000/v1"]      # listed where a model is chosen

[presets.review]                            # `/preset review`; what a preset does not name stays as it was
system = "Review this diff."
temperature = 0.2
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import field
from pathlib import Path
from typing import Any

from ftllm.chat.settings import BY_NAME, OF_REPLIES, Value, Values
from ftllm.errors import UserError
from ftllm.files import write_text
from ftllm.values import dataclass

FILE = "chat.toml"
PRESETS, ENDPOINTS = "presets", "endpoints"
PRESET_NAMES = ("system", *OF_REPLIES)
HINT = "correct that line, or remove it"
HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?$")


@dataclass(frozen=True)
class Defaults:
    """What the settings file says.

    Attributes:
        values: settings by name; those not there are left to the command line or to the model.
        presets: settings by the preset's name.
        endpoints: addresses of endpoints.
        path: the file; None for nowhere.
    """

    values: Values = field(default_factory=dict)
    presets: Mapping[str, Values] = field(default_factory=dict)
    endpoints: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def system(self) -> str | None:
        """The system prompt."""
        value = self.values.get("system")
        return str(value) if value else None


def default_path() -> Path:
    """Where the settings file is."""
    from platformdirs import user_config_path

    return user_config_path("ftllm") / FILE


def read_defaults(path: Path) -> Defaults:
    """Read the settings file; one that does not exist says nothing.

    Raises:
        UserError: it cannot be read, is not TOML, or says what is no setting.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Defaults(path=path)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"the settings {path} cannot be read: {reason}", "mend the file, or remove it") from None
    return parse_defaults(text, path)


def parse_defaults(text: str, path: Path) -> Defaults:
    """The settings file's text.

    Raises:
        UserError: as `read_defaults`, with the line.
    """
    if not text.strip():
        return Defaults(path=path)
    import tomllib

    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, at = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", at)
        where = f"{path}:{line[1]}" if line else f"{path}"
        raise UserError(
            f"{where}: not TOML: {what[:1].lower()}{what[1:]}", 'lines are `name = value`, texts in "..."'
        ) from None
    presets = tables.pop(PRESETS, {})
    endpoints = tables.pop(ENDPOINTS, [])
    place = _Place(path, text)
    values = _values(tables, place, (), tuple(BY_NAME))
    if not isinstance(presets, dict) or not all(isinstance(preset, dict) for preset in presets.values()):
        raise UserError(f"{place.of(PRESETS)}: presets are tables", "begin each with a line [presets.NAME]")
    if not isinstance(endpoints, list) or not all(isinstance(address, str) for address in endpoints):
        raise UserError(
            f"{place.of(ENDPOINTS)}: endpoints is a list of addresses", 'as in endpoints = ["http://localhost:8000/v1"]'
        )
    return Defaults(
        values,
        {name: _values(preset, place, (PRESETS, name), PRESET_NAMES) for name, preset in presets.items()},
        tuple(endpoints),
        path,
    )


def write_values(path: Path, values: Values) -> None:
    """Change settings in the file, None removing them; all else in it stays, comments included.

    Raises:
        UserError: the file is not TOML, or cannot be written.
        WorkError: no space left.
    """
    _change(path, lambda document: _put(document, values))


def write_preset(path: Path, name: str, values: Values | None) -> None:
    """Put a preset of that name into the file, or take it out where `values` is None; as `write_values`."""

    def change(document: MutableMapping[str, Any]) -> None:
        import tomlkit

        presets = document.setdefault(PRESETS, tomlkit.table(is_super_table=True))
        if values is None:
            presets.pop(name, None)
        else:
            presets[name] = tomlkit.table()
            _put(presets[name], values)
        if not presets:
            del document[PRESETS]

    _change(path, change)


def _change(path: Path, change: Callable[[MutableMapping[str, Any]], None]) -> None:
    read_defaults(path)  # a file that is wrong is mended by hand, not overwritten
    import tomlkit

    document = tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    change(document)
    write_text(path, tomlkit.dumps(document))


def _put(table: MutableMapping[str, Any], values: Values) -> None:
    for name, value in values.items():
        if value is None:
            table.pop(name, None)
        else:
            table[name] = _item(value)


def _item(value: Value) -> Any:
    """A value as TOML: a long text on lines of its own, variables on one."""
    import tomlkit

    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update(value)
        return table
    return tomlkit.string(value, multiline=True) if isinstance(value, str) and "\n" in value else value


@dataclass(frozen=True)
class _Place:
    """Finds the line of a key: tomllib does not tell."""

    path: Path
    text: str

    def of(self, key: str, table: tuple[str, ...] = ()) -> str:
        """`FILE:LINE`, or the file alone where the key is written in an unusual way."""
        here: tuple[str, ...] = ()
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := HEADER.match(line):
                here = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            if (here == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line)) or here == (*table, key):
                return f"{self.path}:{number}"
        return str(self.path)


def _values(
    table: Mapping[str, Any], place: _Place, where: tuple[str, ...], known: tuple[str, ...]
) -> dict[str, Value]:
    values = {}
    for name, value in table.items():
        if name not in known:
            raise UserError(f"{place.of(name, where)}: {name!r} is no setting", _meant(name, known))
        try:
            values[name] = BY_NAME[name].check(value)
        except UserError as error:
            raise UserError(f"{place.of(name, where)}: {error.message}", HINT) from None
    return values


def _meant(name: str, known: tuple[str, ...]) -> str:
    """What to say about a name that is none."""
    if name in BY_NAME:
        return "a preset has none; put it at the beginning of the file"
    import difflib

    called = {BY_NAME[key].command: key for key in known} | {key: key for key in known}
    near = difflib.get_close_matches(name, called, 1)
    return f"did you mean {called[near[0]]}?" if near else f"there are {', '.join(known)}"
