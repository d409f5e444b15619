"""The models there are, to talk to another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from ftllm.chat.remote import Remote, Target, is_address, parse_remote
from ftllm.errors import UserError
from ftllm.files import human
from tui.models import Entry, local_entries, remote_entries, same
from tui.screens.picking import PickScreen, Row

COLUMNS = ("model", "from", "type", ">size", ">context", "fits")


class ModelsScreen(PickScreen[Target]):
    """Runs, files, the Hub's cache and endpoints; looked for while it is shown.

    Args:
        known: what was found the last time.
        current: what is talked to.
        runs: where runs are.
        endpoints: whom to ask for models.
        found: told all that was found.
    """

    def __init__(
        self,
        known: Sequence[Entry],
        current: Target,
        runs: Path,
        endpoints: Sequence[Remote],
        found: Callable[[list[Entry]], None],
    ) -> None:
        self._current = current
        super().__init__("Models", COLUMNS, [self._row(entry) for entry in known])
        self._runs = runs
        self._endpoints = endpoints
        self._found = found

    def on_mount(self) -> None:
        """Look for models beside the screen."""
        self.run_worker(self._look(), name="models")

    async def _look(self) -> None:
        looked = [asyncio.to_thread(local_entries, self._runs)]
        looked += [asyncio.to_thread(remote_entries, remote) for remote in self._endpoints]
        parts: list[list[Entry]] = [[] for _ in looked]

        async def take(place: int) -> None:
            parts[place] = await looked[place]
            missing = sum(not part for part in parts[1:])
            waiting = f"Waiting for {missing} of {len(self._endpoints)} endpoints" if missing else ""
            entries = [entry for part in parts for entry in part]
            if parts[0]:
                self.offer([self._row(entry) for entry in entries], waiting)

        self.offer(self._rows, "Looking for models …")
        await asyncio.gather(*(take(place) for place in range(len(looked))))
        entries = [entry for part in parts for entry in part]
        nothing = "No model here: `ftllm models pull REPO` fetches one. Or type an address or a path."
        self.offer([self._row(entry) for entry in entries], "" if entries else nothing)
        self._found(entries)

    def typed_row(self, text: str) -> Row[Target] | None:
        """An address, or the path of a file."""
        if is_address(text):
            try:
                return Row(parse_remote(text), (text, "endpoint"))
            except UserError as error:
                return Row(Path(), (text,), problem=error.message)
        path = Path(text).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            return Row(path.absolute(), (text, "file"))
        return None

    def _row(self, entry: Entry) -> Row[Target]:
        cells = (
            entry.name,
            entry.place,
            entry.type,
            human(entry.size) if entry.size else "",
            f"{entry.context:,}" if entry.context else "",
            ("yes" if entry.fits else "no") if entry.size else "",
        )
        here = same(entry.target, self._current)
        return Row(entry.target, cells, here, entry.problem, 0 if entry.fits else len(cells) - 1)
