"""The conversation on the screen, without its keys: messages go to the engine, its events to the transcript."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from textual import on
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import Static

from ftllm.chat.events import AnyEvent, Done, Failed, Loaded
from ftllm.chat.options import ReplyOptions, ThoughtMode
from ftllm.chat.store import Node
from ftllm.errors import UserError
from tui.conversation import NO_REPLY, Conversation
from tui.loader import Loader
from tui.meter import Meter
from tui.setup import Setup
from tui.steady import Steadily
from tui.text import one_line
from tui.turns import Remark, ReplyTurn, Turn, UserTurn, failure_text
from tui.widgets.completions import Completion, Completions
from tui.widgets.composer import Composer
from tui.widgets.keybar import KeyBar
from tui.widgets.marker import EndMarker, View
from tui.widgets.status import StatusLine
from tui.widgets.transcript import Transcript
from tui.widgets.transcript_messages import Moved

CLOCK_SECONDS = 0.1
"""How often the clock of a thought moves when nothing else does."""

HASH = 8
"""Of a model's hash, the characters that are shown."""

FIGURES_SECONDS = 1.0
"""How often figures alone change on the screen while more keeps coming."""

SHARE = 0.015
"""Of the time, for painting while the engine computes on every processor: its threads wait for one another, so what
one of them loses to the screen, all lose."""


def rest_after(paint_seconds: float, taken_seconds: float = 0.0) -> float:
    """How long not to paint: 20 paints a second; 10 after a slow one; never more than half of the time.

    Args:
        taken_seconds: processor time that the paint took from the engine.
    """
    held = min(taken_seconds / SHARE - paint_seconds, 0.2)
    return max(0.05 if paint_seconds <= 0.025 else 0.1, paint_seconds, held)


class Queue(Steadily, Static):
    """What is sent next."""


class TalkScreen(Screen[None]):
    """Transcript, composer and status line, over one conversation with one model.

    Args:
        setup: whom one talks to, and what surrounds that.
    """

    AUTO_FOCUS = "Composer"

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._notice = setup.notice
        self.conversation = Conversation(setup.store, setup.talker, setup.model, setup.options)
        self._talker = setup.talker
        self._inbox = setup.inbox
        self._loader = Loader(setup.talker, setup.inbox)
        self._options = setup.options
        self._clock = setup.clock
        self._meter = Meter(setup.model.stem)
        self._mode: ThoughtMode = "auto" if setup.options.show_thoughts else "closed"
        self._shares_cores = False  # with the engine
        self._blinking = True
        self._figures_shown = 0.0
        self._queue: list[str] = []
        self._turn: ReplyTurn | None = None
        self._unkept = False  # the model has read something that no file holds
        self._next: Callable[[], None] | None = None  # what waits for the engine

    def compose(self) -> ComposeResult:
        with View(id="view"):
            yield Transcript(self.conversation.model.stem)
            yield EndMarker()
        with Container(id="writing"):
            yield Queue(id="queue", markup=False)
            yield Completions(self.completions)
            yield Composer()
        yield StatusLine()
        yield KeyBar()

    def on_mount(self) -> None:
        """The composer has the focus at once, whatever the model is doing."""
        self._show_queue()
        self._show_figures()
        self._go_on()
        for notice in filter(None, [self._notice, self.conversation.store.recovered]):
            self._remark(str(notice), failure=True)
        self.run_worker(self._follow(), name="follow")

    def _go_on(self) -> None:
        """Show the session that was asked for."""

    def _session_changed(self) -> None:
        """Another session is shown, or something was said in it."""

    def on_unmount(self) -> None:
        """Keep what there is."""
        with suppress(UserError):
            self.conversation.close()

    @property
    def transcript(self) -> Transcript:
        """Where the conversation is shown."""
        return self.query_one(Transcript)

    @property
    def busy(self) -> bool:
        """Whether a reply is under way."""
        return self._turn is not None

    @property
    def saving(self) -> bool:
        """Whether what the model has read is being written to a file."""
        return self._loader.saving is not None

    def completions(self, line: str) -> Sequence[Completion]:
        """What a line that begins with a slash may become."""
        del line
        return []

    # The engine's events

    async def _follow(self) -> None:
        """Take the engine's events as they come, until the program leaves."""
        try:
            while True:
                await self._follow_once()
        except NoMatches:
            if self.app.is_running:  # else parts of the screen have gone before it
                raise

    async def _follow_once(self) -> None:
        """Wait for events and take them; paint what they change a few times a second."""
        if self._inbox.empty:
            self._show_figures()
        await self._inbox.wait(CLOCK_SECONDS if self._turn and self._turn.live_thought else None)
        began, used = time.perf_counter(), time.thread_time()
        for event in self._inbox.drain():
            self._take(event)
        if self._turn is not None:
            self.transcript.redraw(self._turn)
        self._blink(self._turn is None or not self._shares_cores)
        await self._drawn()
        self._show_figures(unless_since=began - FIGURES_SECONDS)  # not together: all between would be drawn too
        took, used = time.perf_counter() - began, time.thread_time() - used
        await asyncio.sleep(rest_after(took, used if self._shares_cores else 0.0))

    def _blink(self, blinking: bool) -> None:
        """Let the cursor blink, or stand still where each change of it takes time from the engine."""
        if blinking != self._blinking:
            self._blinking = blinking
            self.query_one(Composer).cursor_blink = blinking

    async def _drawn(self) -> None:
        """Until the screen has been drawn."""
        drawn = asyncio.Event()
        if self.call_after_refresh(drawn.set):
            with suppress(TimeoutError):
                await asyncio.wait_for(drawn.wait(), 1)

    def _take(self, event: AnyEvent) -> None:
        if event.reply == 0:
            if self._loader.take(event):
                self._take_of_engine(event)
            return
        if isinstance(event, Failed) and event.crashed:
            self._loader.take(event)
        try:
            taken = self.conversation.take(event)
        except UserError as error:
            taken = True
            self._tell(error)
        if taken and self._turn is not None:
            self._meter.take(event)
            self._turn.take(event)
            if isinstance(event, Done | Failed):
                self._end_reply(event)

    def _take_of_engine(self, event: AnyEvent) -> None:
        """Take an event about the model that was asked for last, or about the engine that has it."""
        self._meter.take(event)
        if isinstance(event, Loaded):
            self._shares_cores = event.shares_cores
            self.conversation.delta_seconds = 0.1 if event.shares_cores else 0.05  # it is painted no more often
            self.conversation.loaded(event)
            self._meter.rename(self.conversation.model.stem)
            self.transcript.greet(self.conversation.model.stem)
            if not self._do_next():
                self._send_next()
        elif isinstance(event, Failed):
            self._next, self._unkept = None, False
            self._remark(failure_text(event), failure=True)
            self._return_queue()

    def _end_reply(self, event: Done | Failed) -> None:
        turn, self._turn = self._turn, None
        self._unkept = isinstance(event, Done)
        if turn is not None:
            self.transcript.redraw(turn)
        self.refresh_bindings()
        if self._do_next():
            return
        if isinstance(event, Done) and event.reason != "stopped":
            self._send_next()
        else:
            self._return_queue()

    # Sending

    def send(self, text: str) -> None:
        """Send a message, or keep it until the engine is free."""
        self._queue.append(text)
        if self._loader.failed:
            self._load()
        if self._loader.ready and not self.busy:
            self._send_next()
        self._show_queue()
        self.transcript.to_end()

    def _when_free(self, work: Callable[[], None]) -> None:
        """Do something that needs the engine: at once, or when it is loaded and the reply under way is stopped."""
        if self._loader.ready and not self.busy:
            work()
            return
        self._next = work
        if self.busy:
            self._talker.stop()
        elif self._loader.failed:
            self._load()

    def _after_reply(self, work: Callable[[], None]) -> None:
        """Do something that no reply may be under way for: at once, or when it has been stopped."""
        if self.busy:
            self._next = work
            self._talker.stop()
        else:
            work()

    def _do_next(self) -> bool:
        """Do what waited for the engine, if anything did."""
        work, self._next = self._next, None
        if work is not None:
            work()
        return work is not None

    def _load(self, state: Path | None = None) -> None:
        """Load the conversation's model; then take what it had read from a file."""
        self._loader.load(self.conversation.model, self.conversation.load, state)

    def _send_next(self) -> None:
        """Send the first message of the queue, if there is one."""
        if not self._queue or self.busy or not self._loader.ready:
            return
        text = self._queue.pop(0)
        self._show_queue()
        before = len(self.conversation.nodes)
        self._ask(lambda: self.conversation.ask(text))
        if self._turn is not None:
            asked = self.conversation.nodes[before]
            self.transcript.add(UserTurn(text, asked.id, images=asked.message.images), self._turn)
        else:
            self.query_one(Composer).give_back(text)

    def _ask(self, asking: Callable[[], object], turn: ReplyTurn | None = None) -> None:
        """Ask the engine for a reply; what goes wrong is told.

        Args:
            turn: the reply that goes on; None for a new one.
        """
        try:
            asking()
        except UserError as error:
            if not self.conversation.busy:
                self._tell(error)
                return
            self._inbox.put(Failed(0.0, NO_REPLY, error.message, error.hint, error.exit_code))
        last = self.conversation.nodes[-1]
        if turn is not None:
            turn.resume()
        self._turn = turn or ReplyTurn(
            self._clock,
            node=last.id,
            branch=(last.branch, last.branches),
            mode=self._mode,
            budget=self.conversation.options.think_budget,
            byline=byline(last, self.conversation.nodes[:-1]),
        )
        if self.conversation.remote:
            self._turn.key = ""
        self._meter.asked()
        self._session_changed()
        self.refresh_bindings()

    def _turns(self, nodes: list[Node], known: Mapping[int | None, Turn] = MappingProxyType({})) -> list[Turn]:
        """The messages as turns: those `known` by their nodes are taken where they look the same."""
        turns: list[Turn] = []
        for place, node in enumerate(nodes):
            turn, branch = known.get(node.id), (node.branch, node.branches)
            if turn is None or turn.branch != branch:
                if node.message.role == "user":
                    turn = UserTurn(node.message.content, node.id, branch, node.message.images)
                else:
                    turn = ReplyTurn.of(node, self._clock, self._mode, byline(node, nodes[:place]))
            turns.append(turn)
        return turns

    def _show_changed(self) -> None:
        """Show the conversation's messages again after some have changed; the rest stays as it is on the screen."""
        known: dict[int | None, Turn] = {turn.node: turn for turn in self.transcript.turns}
        if self._turn is not None:
            known[self._turn.node] = self._turn
        self.transcript.change(self._turns(self.conversation.nodes, known))
        self.refresh_bindings()

    def _return_queue(self) -> None:
        """Messages that were not sent go back to the composer."""
        if self._queue:
            self.query_one(Composer).give_back("\n\n".join(self._queue))
            self._queue.clear()
        self._show_queue()

    def _show_queue(self) -> None:
        queue = self.query_one("#queue", Static)
        if queue.display != bool(self._queue):
            queue.display = bool(self._queue)
            self.refresh_bindings()  # Esc takes it back
        if self._queue:
            more = f" (and {len(self._queue) - 1} more)" if len(self._queue) > 1 else ""
            queue.update(Content(f"Next: {one_line(self._queue[0], 60)}{more}"))

    def _show_figures(self, *, unless_since: float = math.inf) -> None:
        """Tell what the engine does; only what it does now, where its figures were shown after `unless_since`."""
        status, figures = self.query_one(StatusLine), self._meter.figures
        if status.figures.state != figures.state:
            self.refresh_bindings()
        elif self._figures_shown > unless_since:
            return
        status.figures = replace(figures, think=thinking(self.conversation.options))
        self._figures_shown = time.perf_counter()

    def _remark(self, text: str, *, failure: bool = False) -> None:
        self.transcript.add(Remark(text, failure=failure))

    def _tell(self, error: UserError) -> None:
        self._remark("\n".join(filter(None, [error.message, error.hint])), failure=True)

    @on(Moved)
    def _show_marker(self) -> None:
        self.query_one(EndMarker).display = not self.transcript.at_end


def byline(reply: Node, before: Sequence[Node]) -> str:
    """The name of a reply's model, where the reply before it is another's; with its hash where both have one name."""
    last = next((node.author for node in reversed(before) if node.message.role == "assistant"), None)
    author, name = reply.author, Path(reply.author.model).name
    if last is None or not last.model or (author.model_hash and author.model_hash == last.model_hash):
        return ""
    if name != Path(last.model).name:
        return name
    return f"{name} ({author.model_hash[:HASH]})" if author.model_hash and last.model_hash else ""


def thinking(options: ReplyOptions) -> str:
    """How thoughts are asked for: `auto`, `on`, `auto ≤512`."""
    return options.think if options.think_budget is None else f"{options.think} ≤{options.think_budget}"
