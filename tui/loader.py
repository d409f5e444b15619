"""Which model the engine holds, which it is loading, and what is to come after that."""

from __future__ import annotations

from pathlib import Path

from ftllm.chat.events import AnyEvent, Failed, Loaded, StateSaved
from ftllm.chat.options import LoadSettings
from ftllm.chat.remote import Target
from ftllm.chat.states import prune
from ftllm.errors import UserError
from ftllm.values import dataclass
from tui.inbox import Inbox
from tui.talker import Talker


@dataclass(frozen=True)
class _Wish:
    """A model, how it is loaded, and the file with what it had read, if there is one."""

    target: Target
    settings: LoadSettings
    state: Path | None = None


class Loader:
    """Has the engine load one model at a time: of what is asked for meanwhile, only the last is loaded.

    Whoever looks through sessions held with many models waits for one load at most, and what has been read for a
    session is written before another model takes its place.

    Args:
        talker: the engine, told to load a model already.
        inbox: where it leaves its events.

    Attributes:
        ready: the model asked for last is loaded.
        failed: it could not be loaded.
        saving: the file that what the model has read is being written to.
    """

    def __init__(self, talker: Talker, inbox: Inbox) -> None:
        self.ready = self.failed = False
        self.saving: Path | None = None
        self._talker, self._inbox = talker, inbox
        self._loading = True
        self._wish: _Wish | None = None  # what is loaded next

    def load(self, target: Target, settings: LoadSettings, state: Path | None = None) -> None:
        """Load a model, now or after what is under way; then take what it had read from a file."""
        self.ready = self.failed = False
        self._wish = _Wish(target, settings, state)
        self._go_on()

    def save_state(self, path: Path) -> None:
        """Write what the model has read to a file."""
        self.saving = path
        self._talker.save_state(path)

    def load_state(self, path: Path) -> None:
        """Let the model that was asked for last take what it had read from a file."""
        if self._wish is not None:
            self._wish = _Wish(self._wish.target, self._wish.settings, path)
        else:
            self._talker.load_state(path)

    def take(self, event: AnyEvent) -> bool:
        """Fold in an event about the engine itself; whether it is about the model asked for last."""
        match event:
            case StateSaved():
                self.saving = None
                if not event.error:
                    prune(Path(event.path))
            case Loaded() | Failed():
                overtaken = self._loading and self._wish is not None
                if self._loading and not overtaken:
                    self.ready, self.failed = isinstance(event, Loaded), isinstance(event, Failed)
                self._loading = False
                if isinstance(event, Failed):  # the engine may be gone, and what was to be written with it
                    self.saving = None
                self._go_on()
                return not overtaken
        self._go_on()
        return self._wish is None

    def _go_on(self) -> None:
        if self._wish is None or self._loading or self.saving is not None:
            return
        wish, self._wish, self._loading = self._wish, None, True
        try:
            self._talker.load(wish.target, wish.settings)
            if wish.state is not None:
                self._talker.load_state(wish.state)
        except UserError as error:
            self._inbox.put(Failed(0.0, 0, error.message, error.hint, error.exit_code))
