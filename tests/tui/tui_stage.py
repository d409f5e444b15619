"""An engine that replays events as recorded, a clock that stands still, and the application over both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Static

from ftllm.chat.events import (
    AnyEvent,
    Done,
    DoneReason,
    Failed,
    Loaded,
    LoadProgress,
    PromptProgress,
    StateSaved,
    Stats,
    TextDelta,
    ThinkDelta,
    ThinkEnd,
    ThinkEndReason,
    ThinkStart,
)
from ftllm.chat.options import ChatOptions, LoadSettings, ReplyOptions, SamplingOptions
from ftllm.chat.remote import Target
from ftllm.chat.store import Store, memory_store
from ftllm.errors import WorkError
from tui.app import ChatApp
from tui.inbox import Inbox
from tui.screens.chat import ChatScreen
from tui.setup import Setup
from tui.turns import Remark, ReplyTurn
from tui.widgets.composer import Composer
from tui.widgets.status import StatusLine
from tui.widgets.transcript import Transcript

MODEL = Path("models/nano-ft-Q4_K_M.gguf")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Replay:
    """Notes what it is asked; the test says what it answers, and when."""

    def __init__(self, inbox: Inbox, clock: Clock) -> None:
        self.inbox = inbox
        self.clock = clock
        self.asked: list[list[Mapping[str, str]]] = []
        self.loads: list[tuple[Path, LoadSettings | None]] = []
        self.options: list[ReplyOptions | None] = []
        self.sampling: list[SamplingOptions] = []
        self.saved: list[Path] = []
        self.restored: list[Path] = []
        self.stops = 0
        self.answers_now = 0
        self.refuse = False

    def load(self, path: Path, settings: LoadSettings | None = None) -> None:
        self.loads.append((path, settings))

    def generate(self, messages: Sequence[Mapping[str, str]], options: ReplyOptions | None = None) -> int:
        if self.refuse:
            raise WorkError("no process can be started")
        self.asked.append(list(messages))
        self.options.append(options)
        return len(self.asked)

    def stop(self) -> None:
        self.stops += 1
        self.done("stopped")

    def save_state(self, path: Path) -> None:
        self.saved.append(path)

    def load_state(self, path: Path) -> None:
        self.restored.append(path)

    def answer_now(self) -> None:
        self.answers_now += 1

    def set_sampling(self, sampling: SamplingOptions) -> None:
        self.sampling.append(sampling)

    @property
    def reply(self) -> int:
        """The number of the reply under way."""
        return len(self.asked)

    def play(self, events: Iterable[AnyEvent]) -> None:
        for event in events:
            self.inbox.put(event)

    def load_progress(self, fraction: float) -> None:
        self.play([LoadProgress(self.clock(), 0, fraction)])

    def ready(self, n_ctx: int = 8192, path: str = str(MODEL)) -> None:
        self.play([Loaded(self.clock(), 0, path, "gemma3 8M Q4_K - Medium", n_ctx, n_ctx, 5 << 20, 8 << 20, 0.3)])

    def saved_state(self) -> None:
        """What was last to be written is."""
        self.play([StateSaved(self.clock(), 0, str(self.saved[-1]), 420, 4200)])

    def prompt(self, total: int = 24) -> None:
        self.play([PromptProgress(self.clock(), self.reply, done, total) for done in (0, total)])

    def think(self, *pieces: str) -> None:
        self.play([ThinkStart(self.clock(), self.reply)])
        self.play(ThinkDelta(self.clock(), self.reply, piece, count) for count, piece in enumerate(pieces, start=1))

    def end_thought(self, seconds: float = 7.4, tokens: int = 312, why: ThinkEndReason = "closed") -> None:
        self.play([ThinkEnd(self.clock(), self.reply, why, seconds, tokens)])

    def text(self, *pieces: str) -> None:
        self.play(TextDelta(self.clock(), self.reply, piece) for piece in pieces)

    def stats(self, context_tokens: int = 420, n_ctx: int = 8192) -> None:
        self.play([Stats(self.clock(), self.reply, 24, 0, 312, 84, 7.4, 0.21, 52.3, n_ctx, context_tokens)])

    def done(self, reason: DoneReason = "stop", context_tokens: int = 420) -> None:
        self.stats(context_tokens)
        self.play([Done(self.clock(), self.reply, reason)])

    def crash(self) -> None:
        log = ("llama_decode: something went wrong", "ggml: out of memory")
        message = "the engine's process has died (signal 9)"
        self.play([Failed(self.clock(), self.reply, message, "send the message again", 1, True, log)])

    def fail_to_load(self) -> None:
        self.play([Failed(self.clock(), 0, "nano.gguf is cut short", "export it again", 2)])


class Stage:
    """The application over a replayed engine."""

    def __init__(
        self,
        options: ChatOptions | None = None,
        notice: str = "",
        model: Target = MODEL,
        store: Store | None = None,
    ) -> None:
        self.clock = Clock()
        inbox = Inbox()
        self.engine = Replay(inbox, self.clock)
        self.store = store or memory_store()
        setup = Setup(self.engine, inbox, self.store, model, options or ChatOptions(), self.clock, notice)
        self.app = ChatApp(setup)

    @property
    def screen(self) -> ChatScreen:
        """The conversation, whatever lies over it."""
        screen = self.app.screen_stack[0]
        assert isinstance(screen, ChatScreen)
        return screen

    @property
    def transcript(self) -> Transcript:
        return self.screen.query_one(Transcript)

    def title(self) -> str:
        """The title of the last thought, as drawn."""
        return titles(self)[-1]

    def drawn(self) -> list[str]:
        """The lines of the transcript that are in view, without the space and the selection's bar around them."""
        lines = (self.transcript.render_line(y).text for y in range(self.transcript.size.height))
        return [line.replace("┃", " ").strip() for line in lines]

    def row(self, text: str) -> int:
        """The line of the view that holds a text."""
        return next(y for y, line in enumerate(self.drawn()) if text in line)

    async def until(self, pilot: Pilot[None], holds: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for what the screen comes to by itself."""
        for _ in range(int(seconds / 0.02)):
            await pilot.pause()
            if holds():
                await pilot.pause(0.02)
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it did not come to that")

    async def settle(self, pilot: Pilot[None]) -> None:
        """Wait until every event left so far has been painted."""
        await self.until(pilot, lambda: self.engine.inbox.idle)

    async def say(self, pilot: Pilot[None], text: str) -> None:
        """Type a message and send it."""
        self.screen.query_one(Composer).load_text(text)
        await pilot.press("enter")
        await pilot.pause()


STEPS = [f"Step {number}: write {number} and carry one.\n" for number in range(40)]


def shown(widget: Static) -> str:
    """A widget's text as drawn."""
    return str(widget.visual)


def replies(stage: Stage) -> list[ReplyTurn]:
    return [turn for turn in stage.transcript.turns if isinstance(turn, ReplyTurn)]


def titles(stage: Stage) -> list[str]:
    """Of all thoughts, as drawn."""
    return [line for line in stage.drawn() if line.startswith(("▾ ", "▸ "))]


def notes(stage: Stage) -> list[str]:
    """What the program says about replies, and by itself."""
    return [note for turn in replies(stage) for note in turn.notes] + [
        turn.text for turn in stage.transcript.turns if isinstance(turn, Remark)
    ]


def status(stage: Stage) -> str:
    return shown(stage.screen.query_one(StatusLine))


def answers(stage: Stage) -> list[str]:
    return ["".join(turn.answer) for turn in replies(stage)]


async def converse(stage: Stage, pilot: Pilot[None], text: str = "What is 347 + 586?") -> None:
    """A whole exchange with a thought."""
    await stage.say(pilot, text)
    stage.engine.prompt()
    stage.engine.think(*STEPS)
    stage.engine.end_thought()
    stage.engine.text("The sum ", "is **933**.")
    stage.engine.done()
    await stage.settle(pilot)


@asynccontextmanager
async def conversation(
    options: ChatOptions | None = None, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[tuple[Stage, Pilot[None]]]:
    """A stage after one exchange."""
    stage = Stage(options)
    async with stage.app.run_test(size=size) as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        yield stage, pilot


async def answer(stage: Stage, pilot: Pilot[None], text: str) -> None:
    """Let the reply under way say this."""
    stage.engine.text(text)
    stage.engine.done()
    await stage.settle(pilot)


async def click(stage: Stage, pilot: Pilot[None], text: str) -> None:
    """Click the first cell of a text that is in view."""
    row = stage.row(text)
    line = stage.transcript.render_line(row).text
    await pilot.click(stage.transcript, offset=(line.index(text), row))
    await stage.settle(pilot)


def told(stage: Stage) -> list[str]:
    """The notifications."""
    return [notification.message for notification in stage.app._notifications]
