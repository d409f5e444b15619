"""The settings file: read with the place in every complaint, written with the person's own words left in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_command import chat

from ftllm.chat.defaults import Defaults, parse_defaults, read_defaults, write_preset, write_values
from ftllm.errors import UserError

FILE = Path("/home/someone/.config/ftllm/chat.toml")


def test_what_it_says() -> None:
    text = """
    temperature = 1           # a whole number will do
    think_budget = 2000
    endpoints = ["http://gpu-box:8000/v1"]

    [presets.review]
    system = "Review this."
    temperature = 0.2
    """
    assert parse_defaults(text, FILE) == Defaults(
        {"temperature": 1.0, "think_budget": 2000},
        {"review": {"system": "Review this.", "temperature": 0.2}},
        ("http://gpu-box:8000/v1",),
        FILE,
    )


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("\ntop_p = = 1", ":2: not TOML: invalid value", "name = value"),
        ("temp = 0.5", ":1: 'temp' is no setting", "did you mean temperature?"),
        ("temprature = 0.5", ":1: 'temprature' is no setting", "did you mean temperature?"),
        ("\n\ntemperature = 9", ":3: temperature: a number from 0 to 5, not 9", "correct that line"),
        ("max_tokens = true", ":1: max_tokens: a whole number from 1, not true", "correct that line"),
        ('top_k = "40"', ':1: top_k: a whole number from 0, not "40"', "correct that line"),
        ("seed = 1\n[presets.a]\nsystem = 'x'\nseed = -1", ":4: seed: a whole number", "correct that line"),
        ('[presets.a]\ntheme = "nord"', ":2: 'theme' is no setting", "a preset has none"),
        ("speculate = 1", ":1: speculate: true or false, not 1", "correct that line"),
        ("presets = 1", ":1: presets are tables", "[presets.NAME]"),
        ('endpoints = "http://x"', ":1: endpoints is a list", "endpoints = ["),
    ],
)
def test_what_it_says_wrongly(text: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_defaults(text, FILE)
    assert caught.value.message.startswith(f"{FILE}{message}")
    assert hint in caught.value.hint


def test_there_need_not_be_one(tmp_path: Path) -> None:
    assert read_defaults(tmp_path / "chat.toml") == Defaults(path=tmp_path / "chat.toml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "chat.toml"
    path.write_bytes(b"temperature = \xff")
    with pytest.raises(UserError, match=r"chat\.toml cannot be read: it is not UTF-8"):
        read_defaults(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_defaults(tmp_path)


def test_writing_leaves_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat.toml"
    write_values(path, {"temperature": 0.6})
    assert path.read_text() == "temperature = 0.6\n"
    path.write_text('# mine\ntop_k = 40  # as Qwen says\nseed = 7\n\n[presets.brief]\nsystem = "Be brief."\n')
    write_values(path, {"seed": None, "theme": "nord"})
    assert path.read_text() == (
        '# mine\ntop_k = 40  # as Qwen says\ntheme = "nord"\n\n[presets.brief]\nsystem = "Be brief."\n'
    )


@pytest.mark.parametrize(
    "system", ['Say "hm"\\n.', 'two\nlines with """ in them\n', "\u202e\x1b[31m\ttab", "我很好 🙂"]
)
def test_presets_come_back_as_they_were(tmp_path: Path, system: str) -> None:
    path = tmp_path / "chat.toml"
    write_values(path, {"speculate": True, "template_kwargs": {"reasoning_effort": "high", "depth": [1, 2]}})
    assert read_defaults(path).values == {
        "speculate": True,
        "template_kwargs": {"reasoning_effort": "high", "depth": [1, 2]},
    }
    write_values(path, {"speculate": None, "template_kwargs": None})
    for name in ("one", "a b.c", "three"):
        write_preset(path, name, {"system": system, "temperature": 0.2, "seed": None})
    write_preset(path, "one", {"top_k": 5})
    write_preset(path, "three", None)
    write_values(path, {"seed": 1})
    read = read_defaults(path)
    assert read.presets == {"one": {"top_k": 5}, "a b.c": {"system": system, "temperature": 0.2}}
    assert read.values == {"seed": 1}
    for name in read.presets:
        write_preset(path, name, None)
    assert path.read_text().strip() == "seed = 1"


def test_a_file_that_is_wrong_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "chat.toml"
    path.write_text("temperature = warm\n")
    for write in (lambda: write_values(path, {"seed": 1}), lambda: write_preset(path, "x", {})):
        with pytest.raises(UserError, match=r"chat\.toml:1: not TOML"):
            write()
    assert path.read_text() == "temperature = warm\n"


def test_the_command_line_wins(tmp_path: Path, scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "ftllm" / "chat.toml"
    write_values(path, {"max_tokens": 5, "temperature": 0.0})
    cut = chat(scripted, "-p", "L")
    assert "cut after 5 tokens" in cut.stderr
    assert "cut after 7 tokens" in chat(scripted, "-p", "L", "--max-tokens", "7").stderr
    path.write_text("max_tokens = 5\ntop_p = 95\n")
    wrong = chat(scripted, "-p", "L")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        f"error: {path}:2: top_p: a number from 0 to 1, not 95\nhint: correct that line, or remove it\n"
    )
