"""How the conversation goes on: every setting on one form, checked as it is typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input, Static, TextArea

from ftllm.chat.settings import (
    BY_NAME,
    ENDPOINT_MAY_IGNORE,
    OFF,
    ON,
    SETTINGS,
    SYSTEM,
    THEME,
    Setting,
    Value,
    Values,
    at_endpoint,
)
from ftllm.errors import UserError
from ftllm.values import dataclass
from tui.screens.dialog import ESCAPE, Dialog
from tui.steady import Steadily
from tui.widgets.choice import Choice
from tui.widgets.typed import Field

PRESET = "preset"
AS_IT_IS = "as it is"
MAY_IGNORE = "*"


class Area(Steadily, TextArea):
    """Several lines to type in."""


@dataclass(frozen=True)
class Chosen:
    """What the person has settled on.

    Attributes:
        values: all settings.
        keep: new conversations begin with them too.
        preset: the name of the preset to keep them as; empty for none.
    """

    values: Values
    keep: bool = False
    preset: str = ""


class Form(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Rows of fields; Up and Down go from one to the next."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]


class SettingsScreen(Dialog[Chosen | None]):
    """The form; it is dismissed with what was chosen, or with None.

    Args:
        values: the settings now.
        presets: those there are, by name.
        themes: the names of the themes.
        first: the setting that has the focus at first; `PRESET` for the presets, where there are any.
        remote: whether they are asked of an endpoint.
    """

    AUTO_FOCUS = ""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-wide")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "use", "Use them from the next message on"),
        Binding("ctrl+s", "keep", "Use them, and in new conversations too", priority=True),
        Binding("escape,f2", "leave", "Leave everything as it was", priority=True),
    ]
    DEFAULT_CSS = """
    SettingsScreen Horizontal { height: auto; }
    SettingsScreen Horizontal > .label { width: 15; }
    SettingsScreen Horizontal > .note { width: 1fr; color: $text-muted; margin-left: 2; }
    SettingsScreen Horizontal > .wrong { color: $text-error; }
    SettingsScreen Input, SettingsScreen Choice { width: 14; height: 1; padding: 0; background: $surface; }
    SettingsScreen Choice:focus, SettingsScreen Input:focus { background: $primary 30%; text-style: bold; }
    SettingsScreen Choice:focus:nocolor { text-style: bold reverse; }
    SettingsScreen #set-theme, SettingsScreen #preset { width: 26; }
    SettingsScreen TextArea { width: 1fr; height: 3; border: none; padding: 0; background: $surface; }
    SettingsScreen.-narrow .note { display: none; }
    SettingsScreen.-narrow .wrong { display: block; }
    """

    def __init__(
        self,
        values: Values,
        presets: Mapping[str, Values],
        themes: Sequence[str],
        first: str = "temperature",
        remote: bool = False,
    ) -> None:
        super().__init__()
        self._before = dict(values)
        self._presets = presets
        self._themes = themes
        self._first = first
        self._remote = remote

    def compose(self) -> ComposeResult:
        title = f"Settings   {MAY_IGNORE} the endpoint may ignore it" if self._remote else "Settings"
        with self.framed(
            Form(), title, ("enter", "Enter: use"), ("ctrl+s", "Ctrl+S: also in new conversations"), ESCAPE
        ):
            if self._presets:
                choice = Choice([AS_IT_IS, *self._presets], AS_IT_IS, id=PRESET)
                yield _row("Preset", choice, "What it does not name stays")
            for setting in SETTINGS:
                yield _row(setting.label, self._field(setting), "" if setting is SYSTEM else self._note(setting))
            name = Field(placeholder="a name", compact=True, id="keep-as")
            yield _row("Keep as preset", name, "/preset NAME brings it back")

    def on_mount(self) -> None:
        """The field that was asked for has the focus."""
        field = self.query_one("#preset" if self._first == PRESET else f"#set-{self._first}")
        field.focus()
        field.scroll_visible(animate=False)

    def _field(self, setting: Setting) -> Widget:
        value, name = self._before[setting.name], f"set-{setting.name}"
        if setting is SYSTEM:
            return Area(str(value or ""), compact=True, id=name, placeholder=setting.unset, highlight_cursor_line=False)
        choices = self._themes if setting is THEME else (OFF, ON) if setting.kind is bool else setting.choices
        if choices:
            return Choice(choices, setting.show(value), id=name)
        text = "" if value is None else setting.show(value)
        return Field(text, placeholder=setting.unset, compact=True, id=name, select_on_focus=True)

    def _note(self, setting: Setting) -> str:
        """What it does, as far as that goes."""
        limit = at_endpoint(setting) if self._remote else ""
        if limit and setting.name in ENDPOINT_MAY_IGNORE:
            return f"{setting.help} {MAY_IGNORE}"
        return limit[:1].upper() + limit[1:] or setting.help

    def _text(self, setting: Setting) -> str:
        field = self.query_one(f"#set-{setting.name}")
        return field.text if isinstance(field, TextArea) else field.value  # type: ignore[attr-defined]

    @on(Input.Changed)
    def _check(self, event: Input.Changed) -> None:
        """Say what is wrong with what is typed, in place of what it is for."""
        setting = BY_NAME.get((event.input.id or "").removeprefix("set-"))
        if setting is None:
            return
        note = event.input.parent.query_one(".note", Static)  # type: ignore[union-attr]
        try:
            setting.parse(event.value)
        except UserError:
            choices = f"{setting.rule}, or empty" if setting.unset else setting.rule
            note.update(Content(f"✗ {choices}"))
            note.add_class("wrong")
        else:
            note.update(Content(self._note(setting)))
            note.remove_class("wrong")

    @on(Choice.Changed, f"#{PRESET}")
    def _fill(self, event: Choice.Changed) -> None:
        """Put a preset's settings into the form."""
        for name, value in {**self._before, **self._presets.get(event.value, {})}.items():
            field, setting = self.query_one(f"#set-{name}"), BY_NAME[name]
            if isinstance(field, TextArea):
                field.load_text(str(value or ""))
            else:
                field.value = "" if value is None else setting.show(value)  # type: ignore[attr-defined]

    @on(Choice.Changed, "#set-theme")
    def _preview(self, event: Choice.Changed) -> None:
        """See what it looks like."""
        self.app.theme = event.value

    def action_leave(self) -> None:
        """Change nothing."""
        self._dismiss(None)

    @on(Input.Submitted)
    def action_use(self) -> None:
        """Go on with them."""
        self._finish(keep=False)

    def action_keep(self) -> None:
        """Go on with them, and begin new conversations so."""
        self._finish(keep=True)

    def _finish(self, *, keep: bool) -> None:
        values: dict[str, Value] = {}
        for setting in SETTINGS:
            try:
                values[setting.name] = setting.parse(self._text(setting))
            except UserError:
                self.query_one(f"#set-{setting.name}").focus()
                self.app.bell()
                return
        self._dismiss(Chosen(values, keep, self.query_one("#keep-as", Input).value.strip()))

    def _dismiss(self, chosen: Chosen | None) -> None:
        self.app.theme = str(self._before[THEME.name])  # until whoever asked takes the one chosen
        self.dismiss(chosen)


def _row(label: str, field: Widget, note: str) -> Horizontal:
    parts = [Static(Content(label), classes="label"), field]
    return Horizontal(*parts, *([Static(Content(note), classes="note")] if note else []))
