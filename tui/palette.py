"""The same commands in Textual's palette."""

from __future__ import annotations

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from ftllm.errors import UserError
from tui.commands import Command, perform, possible
from tui.screens.choosing import ChoosingScreen


class CommandProvider(Provider):
    """Finds what can be done by a part of what it does, or of its word."""

    async def discover(self) -> Hits:
        """Everything, before anything is typed."""
        for command in self._commands():
            yield DiscoveryHit(command.help, partial(self._do, command), help=self._how(command))

    async def search(self, query: str) -> Hits:
        """What has the letters typed in it, in order."""
        matcher = self.matcher(query)
        for command in self._commands():
            score = max(matcher.match(command.help), matcher.match(command.name))
            if score > 0:
                yield Hit(score, matcher.highlight(command.help), partial(self._do, command), help=self._how(command))

    def _commands(self) -> list[Command]:
        if not isinstance(self.screen, ChoosingScreen):
            return []
        return [command for command in self.screen.commands if not command.place and possible(self.screen, command)]

    def _how(self, command: Command) -> str:
        text = "   ".join(filter(None, [command.keys, command.words]))
        return text.replace("[", "\\[")  # Textual's own `escape` leaves capitals, which it takes for markup too

    async def _do(self, command: Command) -> None:
        assert isinstance(self.screen, ChoosingScreen)
        if command.needs_argument:
            self.screen.begin_command(command)
            return
        try:
            await perform(self.screen, command)
        except UserError as error:
            self.screen.notify(error.message, severity="warning", markup=False)
