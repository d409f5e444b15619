"""What can be done, in one list: each a key, a word after a slash, a line of the palette and of the help screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from inspect import isawaitable

from textual import actions
from textual.binding import Binding
from textual.dom import DOMNode

from ftllm.chat.settings import SETTINGS
from ftllm.values import dataclass

MESSAGE_PREFIX = "//"
"""What a message begins with that is to begin with a slash."""


@dataclass(frozen=True)
class Command:
    """Something that can be done.

    Attributes:
        action: as a binding names it.
        help: what it does, on one line.
        name: its word after the slash; empty for none.
        argument: what may follow the word: `NAME`, `[NAME]` where it need not; handed to the action as a text.
        keys: as people write them: `Ctrl+T`.
        place: where its keys work; empty for everywhere.
    """

    action: str
    help: str
    name: str = ""
    argument: str = ""
    keys: str = ""
    place: str = ""

    @property
    def words(self) -> str:
        """`/model [NAME]`."""
        return f"/{self.name} {self.argument}".strip() if self.name else ""

    @property
    def needs_argument(self) -> bool:
        """Whether it does nothing without one."""
        return bool(self.argument) and not self.argument.startswith("[")


# Words for what has a key, or for what has none: by action. Those whose action does not exist are left out.
WORDS = (
    Command("models", "Talk to another model", "model", "[NAME]"),
    Command("presets", "Take a preset: a system prompt and settings under a name", "preset", "[NAME]"),
    Command("settings", "Show and change all settings", "settings"),
    Command("keys", "Show every key and command", "help"),
    *(
        Command(f"set('{setting.name}')", f"{setting.label}: {setting.help}", setting.command, "[VALUE]")
        for setting in SETTINGS
    ),
    Command("keep_preset", "Keep the system prompt and settings as a preset", "keep-preset", "NAME"),
    Command("drop_preset", "Remove a preset", "drop-preset", "NAME"),
    Command("keep_defaults", "Begin new conversations with these settings", "keep-defaults"),
    Command("answer_now", "", "answer"),
    Command("copy_reply", "", "copy"),
    Command("copy_code", "Copy a block of code of the last reply, by its number", "code", "[NUMBER]"),
    Command("save_code", "Write a block of code of the last reply to a file", "save", "[NUMBER]"),
    Command("open_link", "Open a link of the last reply in the browser", "open"),
    Command("regenerate", "", "again"),
    Command("edit_message", "Say your last message otherwise, and ask again", "edit"),
    Command("continue_reply", "Let the last reply go on", "continue"),
    Command("sessions", "", "sessions"),
    Command("new_session", "", "new"),
    Command("rename_session", "Give the session another title", "rename", "[TITLE]"),
    Command("undo", "Undo the last deletion", "undo"),
    Command("export", "Write the session to a Markdown or JSON file", "export", "[FILE]"),
    Command("toggle_dark", "", "dark"),
    Command("quit", "", "quit"),
)


def key_name(keys: str) -> str:
    """`ctrl+end,f3` as people write it: `Ctrl+End, F3`."""
    names = {"pageup": "PageUp", "pagedown": "PageDown", "escape": "Esc", "question_mark": "?", "slash": "/"}
    return ", ".join(
        "+".join(names.get(part, part.capitalize()) for part in key.strip().split("+")) for key in keys.split(",")
    )


def commands_of(screen: DOMNode, *places: tuple[str, DOMNode]) -> list[Command]:
    """All of them: those with a key in the order of their bindings, then those with a word only.

    Args:
        screen: whose bindings, actions and application count everywhere.
        places: parts of it with keys of their own, and what to call them.
    """
    words = {command.action: command for command in WORDS}
    found: list[Command] = []
    for place, node in (("", screen), ("", screen.app), *places):
        for binding in _bindings(node):
            word = words.pop(binding.action, None) if not place else None
            said = binding.tooltip or binding.description
            command = Command(binding.action, said, keys=key_name(binding.key), place=place)
            if word is not None:
                command = replace(command, name=word.name, argument=word.argument, help=word.help or said)
            found.append(command)
    return [*found, *(command for command in words.values() if _target(screen, command.action) is not None)]


def _bindings(node: DOMNode) -> Iterable[Binding]:
    """The bindings of a node's own classes that are described, each action once, its keys together."""
    by_action: dict[str, Binding] = {}
    for kind in type(node).__mro__:
        if kind.__module__.partition(".")[0] != "tui":
            continue
        for binding in vars(kind).get("BINDINGS", ()):
            if isinstance(binding, Binding) and binding.description and binding.action not in by_action:
                by_action[binding.action] = binding
    return by_action.values()


def _target(screen: DOMNode, action: str) -> DOMNode | None:
    """Who does it."""
    name = actions.parse(action)[1]
    return next((node for node in (screen, screen.app) if hasattr(node, f"action_{name}")), None)


def command_named(commands: Sequence[Command], text: str) -> tuple[Command | None, str]:
    """The command a line stands for, and what follows its word; None where there is none of that name."""
    word, _, rest = text[1:].partition(" ")
    found = next((command for command in commands if command.name == word.lower()), None)
    return found, rest.strip()


def is_command(text: str) -> bool:
    """Whether a message is meant as a command: one line, a slash and a word. A path is a message."""
    word = text.partition(" ")[0]
    return text.startswith("/") and word[1:].replace("-", "").isalpha() and "\n" not in text


def possible(screen: DOMNode, command: Command) -> bool:
    """Whether it can be done now."""
    target = _target(screen, command.action)
    _, name, parameters = actions.parse(command.action)
    return target is not None and bool(target.check_action(name, parameters))


def rank(command: Command) -> int:
    """Its place among the words: what is wanted more often comes first."""
    return next((place for place, word in enumerate(WORDS) if word.action == command.action), len(WORDS))


async def perform(screen: DOMNode, command: Command, text: str = "") -> bool:
    """Do it, with what was said after its word; False where it cannot be done now."""
    target = _target(screen, command.action)
    if target is None:
        return False
    _, name, parameters = actions.parse(command.action)
    if text and command.argument:
        parameters = (*parameters, text)
    if not target.check_action(name, parameters):
        return False
    done = getattr(target, f"action_{name}")(*parameters)
    if isawaitable(done):
        await done
    return True
