"""The conversation's choices: settings, presets, models, themes, and every command by its word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from ftllm.chat.defaults import Defaults, read_defaults, write_preset, write_values
from ftllm.chat.events import AnyEvent, Failed, Loaded
from ftllm.chat.options import LoadSettings, ReplyOptions, SamplingOptions
from ftllm.chat.remote import Target
from ftllm.chat.settings import (
    BY_NAME,
    OF_REPLIES,
    OFF,
    ON,
    Setting,
    Value,
    Values,
    at_endpoint,
    reply_options,
    values_of,
)
from ftllm.chat.store import list_sessions
from ftllm.errors import UserError
from tui.commands import Command, command_named, commands_of, perform, possible, rank
from tui.screens.talk import TalkScreen
from tui.text import one_line
from tui.widgets.completions import Completion, Completions
from tui.widgets.composer import Composer
from tui.widgets.sidebar import Sidebar

if TYPE_CHECKING:
    from tui.models import Entry

SAMPLING = tuple(field.name for field in fields(SamplingOptions))


class ChoosingScreen(TalkScreen):
    """What is chosen goes for the next message; how tokens are sampled, for the rest of a reply under way too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "keys", "Help", tooltip="Show every key and command"),
        Binding("f2", "settings", "Settings", tooltip="Show and change all settings"),
        Binding("f3", "models", "Model", tooltip="Talk to another model"),
        Binding("f4", "presets", "Presets", show=False, tooltip="Take a preset: a system prompt and settings"),
    ]

    _known: Sequence[Entry] | None = None  # models; None before they were looked for
    _before: tuple[Target, LoadSettings] | None = None  # what to go back to where another cannot be loaded

    def on_mount(self) -> None:
        """Begin as the settings file says."""
        self.query_one(Composer).menu = self.query_one(Completions)
        if (mode := self.defaults.values.get("thoughts")) and self._options.show_thoughts:
            self._mode = mode  # type: ignore[assignment]

    @property
    def defaults(self) -> Defaults:
        """What the settings file says."""
        return self._options.defaults or Defaults()

    @property
    def values(self) -> dict[str, Value]:
        """All settings as they are."""
        here = {"thoughts": self._mode, "theme": self.app.theme}
        return {**values_of(self.conversation.system, self.conversation.options), **here}

    # Commands

    @property
    def commands(self) -> list[Command]:
        """Everything that can be done here."""
        places = ("in the messages", self.transcript), ("in the sessions", Sidebar(self.conversation.store))
        return commands_of(self, *places)

    @on(TextArea.Changed, "Composer")
    def _complete(self) -> None:
        self.query_one(Completions).look(self.query_one(Composer).text)

    @on(Completions.Taken)
    def _clicked_completion(self) -> None:
        composer, chosen = self.query_one(Composer), self.query_one(Completions).chosen
        composer.focus()
        if chosen is not None:
            composer.take(chosen)

    def completions(self, line: str) -> Sequence[Completion]:
        """What a line that begins with a slash may become."""
        if not line.startswith("/") or "\n" in line or self.query_one(Composer).editing:
            return []
        return list(self._completions(line))

    def _completions(self, text: str) -> Iterable[Completion]:
        if " " not in text:
            typed = text[1:].lower()
            named = [one for one in self.commands if one.name and typed in one.name and possible(self, one)]
            for one in sorted(named, key=lambda one: (not one.name.startswith(typed), rank(one))):
                yield Completion(f"/{one.name}", one.words, one.help, not one.needs_argument)
            return
        command, typed = command_named(self.commands, text)
        if command is None:
            return
        choices = [choice for choice in self._choices(command) if typed.lower() in choice.lower()]
        for choice in sorted(choices, key=lambda one: not one.lower().startswith(typed.lower())):
            if choice != typed:
                yield Completion(f"/{command.name} {choice}", choice)

    def _choices(self, command: Command) -> Iterable[str]:
        """What may follow a command's word, as far as that can be listed."""
        if command.action == "models":
            if self._known is None:
                self._known = []
                self.run_worker(self._look_for_models(), name="models")
            return [entry.name for entry in self._known if not entry.problem]
        if command.action in ("presets", "keep_preset", "drop_preset"):
            return self.defaults.presets
        setting = next((one for one in BY_NAME.values() if one.command == command.name), None)
        if setting is None:
            return []
        if setting.name == "theme":
            return sorted(self.app.available_themes)
        choices = (ON, OFF) if setting.kind is bool else setting.choices
        return [*choices, *([setting.unset] if setting.unset else [])]

    @on(Composer.Commanded)
    async def _commanded(self, event: Composer.Commanded) -> None:
        """Do what a line says."""
        command, text = command_named(self.commands, event.text)
        if command is None:
            self._refuse(event.text, f"There is no command {event.text.split(' ')[0]}: F1 lists them; // sends a slash")
        elif command.needs_argument and not text:
            self._refuse(event.text, f"{command.words}: {command.help}")
        else:
            try:
                if not await perform(self, command, text):
                    self._refuse(event.text, f"{command.words}: there is nothing to do that with now")
            except UserError as error:
                self._refuse(event.text, "\n".join(filter(None, [error.message, error.hint])))

    def begin_command(self, command: Command) -> None:
        """Put a command's word into the composer, for its argument to be typed."""
        composer = self.query_one(Composer)
        composer.load_text(f"/{command.name} ")
        composer.move_cursor(composer.document.end)
        composer.focus()

    def _refuse(self, line: str, why: str) -> None:
        self.query_one(Composer).give_back(line)
        self.query_one(Completions).hide()
        self.notify(why, severity="warning", markup=False)

    def action_keys(self) -> None:
        """Show every key and command."""
        from tui.screens.keys import KeysScreen

        self.app.push_screen(KeysScreen(self.commands))

    # Models

    async def action_models(self, name: str = "") -> None:
        """Talk to another model: the one named, else one that is picked."""
        from tui.models import addresses_of, named
        from tui.screens.models import ModelsScreen

        if name:
            self.switch(await asyncio.to_thread(named, name, self._known or [], self._options.runs))
            return
        said_with: list[str] = []
        with suppress(UserError):  # without the store there are still the models of this machine
            said_with = [info.model for info in list_sessions(self.conversation.store)]
        endpoints = addresses_of(self.defaults.endpoints, said_with)
        screen = ModelsScreen(self._known or [], self.conversation.model, self._options.runs, endpoints, self._know)
        self.app.push_screen(screen, self._picked)

    async def _look_for_models(self) -> None:
        """Know the models of this machine, for their names to be completed."""
        from tui.models import local_entries

        self._know(await asyncio.to_thread(local_entries, self._options.runs))
        self._complete()

    def _know(self, entries: list[Entry]) -> None:
        self._known = entries

    def _picked(self, target: Target | None) -> None:
        if target is not None:
            self.switch(target)

    def switch(self, target: Target) -> None:
        """Go on with another model; where it cannot be loaded, with the one before."""
        from tui.models import load_of, same

        if self.busy:
            self.notify("A reply is under way: Esc stops it", severity="warning")
        elif not same(target, self.conversation.model) or self._loader.failed:
            try:
                load = load_of(target, self.conversation.load, shows_images=self.conversation.shows_images)
                self._change_model(target, load)
                self.conversation.remember_model()
            except UserError as error:
                self._tell(error)

    def _change_model(self, target: Target, load: LoadSettings, state: Path | None = None) -> None:
        """Load another model, or this one in another way; then take what it had read from a file."""
        conversation = self.conversation
        if self._loader.ready:
            self._before = conversation.model, conversation.load
        conversation.talk_to(target, load)
        self._unkept = False
        self._meter.name(target.stem)
        self.transcript.greet(target.stem)
        self._load(state)
        self._show_figures()

    def _take_of_engine(self, event: AnyEvent) -> None:
        super()._take_of_engine(event)
        if isinstance(event, Loaded | Failed):
            before, self._before = self._before, None
            if before is not None and isinstance(event, Failed):
                self._remark(f"Going back to {before[0].stem}.")
                self._change_model(*before)

    # Settings

    def action_settings(self, first: str = "temperature") -> None:
        """Show and change all settings."""
        from tui.screens.settings import SettingsScreen

        themes = sorted(self.app.available_themes)
        remote = self.conversation.remote
        self.app.push_screen(SettingsScreen(self.values, self.defaults.presets, themes, first, remote), self._chosen)

    def action_set(self, name: str, text: str = "") -> None:
        """Change one setting, or show it where nothing is said."""
        if not text:
            self.action_settings(name)
            return
        setting = BY_NAME[name]
        value = setting.parse(text)
        self.change({name: value})
        self._say(setting, value)

    def _chosen(self, chosen: object) -> None:
        from tui.screens.settings import Chosen

        if not isinstance(chosen, Chosen):
            return
        try:
            self.change(chosen.values)
            if chosen.keep:
                self.action_keep_defaults()
            if chosen.preset:
                self.action_keep_preset(chosen.preset)
        except UserError as error:
            self._tell(error)

    def change(self, values: Values) -> None:
        """Go on with these settings; those not named stay.

        Raises:
            UserError: there is no such theme, or it cannot be kept.
        """
        before = self.values
        values = {name: value for name, value in values.items() if before[name] != value}
        if theme := values.get("theme"):
            if theme not in self.app.available_themes:
                raise UserError(
                    f"there is no theme {theme}", f"there are {', '.join(sorted(self.app.available_themes))}"
                )
            self.app.theme = str(theme)
        if mode := values.get("thoughts"):
            self._mode = mode  # type: ignore[assignment]
            for thought in (thought for turn in self.transcript.turns for thought in turn.thoughts):
                thought.mode = self._mode
            self.transcript.redraw_all()
        if {"system", *OF_REPLIES} & set(values):
            options = reply_options(values, self.conversation.options)
            system = str(values["system"] or "") if "system" in values else None
            self.conversation.change(options=options, system=system)
            self._sample(values)
        kept: Values = {name: value for name, value in values.items() if name in ("theme", "thoughts")}
        if kept:
            self._write(lambda path: write_values(path, kept))

    def _sample(self, values: Values) -> None:
        """Let the rest of a reply under way be sampled in the new way."""
        sampling = SamplingOptions(**{name: values[name] for name in SAMPLING if name in values})  # type: ignore[arg-type]
        if self.busy and sampling != SamplingOptions():
            self._talker.set_sampling(sampling)

    def _say(self, setting: Setting, value: Value) -> None:
        told, seconds = f"{setting.label}: {one_line(setting.show(value), 60)}", 2
        if self.conversation.remote and (limit := at_endpoint(setting)):
            told, seconds = f"{told} ({limit})", 5
        self.notify(told, timeout=seconds, markup=False)

    # The settings file

    def _write(self, write: Callable[..., None]) -> None:
        """Change the settings file, and read it again."""
        path = self.defaults.path
        if path is not None:
            write(path)
            self._options = replace(self._options, defaults=read_defaults(path))

    def action_keep_defaults(self) -> None:
        """Begin new conversations with these settings."""
        usual = values_of(None, ReplyOptions())
        kept = {name: value if value != usual[name] else None for name, value in self._conversation_values().items()}
        self._write(lambda path: write_values(path, kept))
        self._options = replace(self._options, system=self.conversation.system, reply=self.conversation.options)
        self.notify(f"New conversations begin so ({self.defaults.path})", markup=False)

    def action_keep_preset(self, name: str) -> None:
        """Keep the system prompt and settings as a preset."""
        usual = values_of(None, ReplyOptions())
        kept = {key: value for key, value in self._conversation_values().items() if value != usual[key]}
        self._write(lambda path: write_preset(path, name, kept))
        self.notify(f"Kept as the preset {name}", timeout=3, markup=False)

    def action_drop_preset(self, name: str) -> None:
        """Remove a preset."""
        if name not in self.defaults.presets:
            raise UserError(f"there is no preset {name}", self._presets_there())
        self._write(lambda path: write_preset(path, name, None))
        self.notify(f"The preset {name} is removed", timeout=3, markup=False)

    def action_presets(self, name: str = "") -> None:
        """Take a preset."""
        if not name and not self.defaults.presets:
            self.notify("There is no preset yet: /keep-preset NAME makes one of the settings as they are", markup=False)
            return
        if not name:
            self.action_settings("preset")
            return
        if name not in self.defaults.presets:
            raise UserError(f"there is no preset {name}", self._presets_there())
        self.change(self.defaults.presets[name])
        self.notify(f"Preset {name}", timeout=2, markup=False)

    def _presets_there(self) -> str:
        return (
            f"there are {', '.join(self.defaults.presets)}" if self.defaults.presets else "/keep-preset NAME makes one"
        )

    def _conversation_values(self) -> dict[str, Value]:
        return values_of(self.conversation.system, self.conversation.options)
