"""The parent's side of the engine: a child process that holds the model and speaks JSON lines.

engine = Engine(on_event=queue.put)
engine.load(Path("model.gguf"))           # returns at once; `Loaded` or `Failed` follows
number = engine.generate([{"role": "user", "content": "Hi"}], ReplyOptions(max_tokens=100))
...                                       # events with reply == number, ending in `Done` or `Failed`
engine.close()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from ftllm.chat.events import AnyEvent
from ftllm.chat.options import LoadSettings, ReplyOptions


class Engine:
    """One model in one process. Methods return at once and may be called from any thread.

    Args:
        on_event: called with each event, in order, on the engine's reader thread; must not block for long.
    """

    def __init__(self, on_event: Callable[[AnyEvent], None]) -> None:
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The child's process id, while it runs."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """Whether a reply is under way or queued."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the child ahead of `load`, so that it imports while the parent does other things."""
        raise NotImplementedError

    def load(self, path: Path, settings: LoadSettings | None = None) -> None:
        """Load a GGUF, in place of the one that is loaded; starts the child where needed."""
        raise NotImplementedError

    def generate(self, messages: Sequence[Mapping[str, str]], options: ReplyOptions | None = None) -> int:
        """Ask for the assistant's next turn; the reply's number. A reply asked for while another runs waits for it.

        When the child has died, another is started and the same model loaded first.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End all replies asked for so far, within one token or one chunk of prompt; each still gets its `Done`."""
        raise NotImplementedError

    def answer_now(self) -> None:
        """Close the thought that is under way and go on to the answer."""
        raise NotImplementedError

    def close(self, timeout: float = 2.0) -> None:
        """Stop and end the child; killed when it has not gone after `timeout` seconds. No events after this."""
        raise NotImplementedError

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
