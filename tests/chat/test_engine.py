"""The engine's process, with a real GGUF: what it tells, and what it survives."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from ftllm.chat.engine import Engine
from ftllm.chat.events import (
    AnyEvent,
    Done,
    Failed,
    Loaded,
    LoopSuspected,
    Prepared,
    PromptProgress,
    StateLoaded,
    StateSaved,
    Stats,
    TextDelta,
    ThinkDelta,
    ThinkEnd,
    ThinkStart,
    TurnsDropped,
)
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.session import ChatMessage, Reply, Session, continuation_of
from ftllm.chat.watch import Patience

ROOT = Path(__file__).resolve().parent.parent.parent
E = TypeVar("E")


class Talk:
    """An engine, and a way to wait for its events."""

    def __init__(self, logs: Path, patience: Patience | None = None) -> None:
        self.events: queue.Queue[AnyEvent] = queue.Queue()
        self.engine = Engine(self.events.put, log_directory=logs, patience=patience)

    def until(self, wanted: Callable[[AnyEvent], bool], timeout: float = 300.0) -> list[AnyEvent]:
        """Events up to the first `wanted` one."""
        got: list[AnyEvent] = []
        deadline = time.monotonic() + timeout
        while True:
            got.append(self.events.get(timeout=max(0.01, deadline - time.monotonic())))
            if wanted(got[-1]):
                return got

    def rest(self, number: int) -> list[AnyEvent]:
        return self.until(lambda event: isinstance(event, Done | Failed) and event.reply == number)

    def say(self, text: str, options: ReplyOptions | None = None) -> list[AnyEvent]:
        """One question without a history, answered; the events of its reply."""
        number = self.engine.generate([{"role": "user", "content": text}], options)
        return [event for event in self.rest(number) if event.reply == number]


def reply_of(events: list[AnyEvent]) -> Reply:
    reply = Reply()
    for event in events:
        reply.feed(event)
    return reply


def only(events: list[AnyEvent], kind: type[E]) -> E:
    (event,) = [event for event in events if isinstance(event, kind)]
    return event


@pytest.fixture
def talk(scripted: Path, tmp_path: Path) -> Iterator[Talk]:
    talk = Talk(tmp_path / "logs")
    with talk.engine:
        talk.engine.load(scripted)
        yield talk


@pytest.fixture
def small(scripted: Path, tmp_path: Path) -> Iterator[Talk]:
    """With a context of 256 tokens."""
    talk = Talk(tmp_path / "logs")
    with talk.engine:
        talk.engine.load(scripted, LoadSettings(n_ctx=256))
        yield talk


def test_loading_tells_about_the_model(talk: Talk, scripted: Path) -> None:
    loaded = only(talk.until(lambda event: isinstance(event, Loaded)), Loaded)
    assert loaded.path == str(scripted)
    assert (loaded.n_ctx, loaded.n_ctx_train) == (8192, 8192)
    assert loaded.seconds < 20


def test_thought_and_answer(talk: Talk) -> None:
    events = talk.say("T")
    reply = reply_of(events)
    assert (reply.thought, reply.answer) == ("Let me see.", "It is 42.")
    stats = only(events, Stats)
    # <bos> u s e r : T <end_of_turn> T
    assert (stats.prompt_tokens, stats.reused_tokens) == (9, 0)
    # "<th" "ink>" "Let" " me" " see." "</thi" "nk>"; "\n" "It" " is" " 42."
    assert (stats.thought_tokens, stats.answer_tokens) == (7, 4)
    assert stats.context_tokens == 9 + 7 + 4
    assert events[-1] == Done(events[-1].time, events[-1].reply, "stop")
    assert [event.time for event in events] == sorted(event.time for event in events)
    end = only(events, ThinkEnd)
    assert end.why == "closed"
    assert end.seconds == end.time - only(events, ThinkStart).time


def test_a_character_of_four_tokens_arrives_whole(talk: Talk) -> None:
    assert reply_of(talk.say("P")).answer == "Hi 🙂!"


def test_a_thought_that_is_never_closed(talk: Talk) -> None:
    events = talk.say("U")
    assert reply_of(events).message.thought == "never closed"
    assert only(events, ThinkEnd).why == "unclosed"


def test_token_limit(talk: Talk) -> None:
    events = talk.say("L", ReplyOptions(max_tokens=5))
    assert only(events, Done).reason == "length"
    assert only(events, Stats).answer_tokens == 5
    assert reply_of(events).answer == "la lila lila"
    assert only(talk.say("R", ReplyOptions(max_tokens=5)), ThinkEnd).why == "cut"


def test_a_full_context_is_an_end_not_a_crash(small: Talk) -> None:
    events = small.say("L")
    assert only(events, Done).reason == "context"
    assert only(events, Stats).context_tokens == 256
    assert reply_of(small.say("T")).answer == "It is 42."


def test_a_prompt_longer_than_the_context_is_refused(small: Talk) -> None:
    failed = only(small.say("a" * 300 + "T"), Failed)
    assert (failed.exit_code, failed.crashed) == (2, False)
    assert "309 tokens long" in failed.message
    assert "256" in failed.message
    assert reply_of(small.say("T")).answer == "It is 42."


def test_a_cut_reply_is_gone_on_with(talk: Talk) -> None:
    asked = ChatMessage("user", "T")
    cut = reply_of(talk.say("T", ReplyOptions(max_tokens=9))).message
    assert (cut.thought, cut.content) == ("Let me see.", "It")
    number = talk.engine.generate(continuation_of(None, [asked, cut]))
    events = [event for event in talk.rest(number) if event.reply == number]
    assert reply_of(events).answer == " is 42."
    assert only(events, Done).reason == "stop"
    thinking = ChatMessage("assistant", "", thought="Now Q")  # the last letter chooses the script
    number = talk.engine.generate(continuation_of(None, [asked, thinking]))
    events = [event for event in talk.rest(number) if event.reply == number]
    assert reply_of(events).thoughts == ["xyz"]


def test_stop_keeps_what_came(talk: Talk) -> None:
    number = talk.engine.generate([{"role": "user", "content": "R"}], ReplyOptions(max_tokens=10**6))
    begun = talk.until(lambda event: isinstance(event, ThinkDelta))
    talk.engine.stop()
    asked = time.monotonic()
    events = begun + talk.rest(number)
    assert time.monotonic() - asked < 20  # without it, a million tokens
    done = only(events, Done)
    assert done.reason == "stopped"
    assert only(events, ThinkEnd).why == "stopped"
    thought = reply_of(events).message.thought
    assert thought
    assert ("Well," + " hmm and" * len(thought)).startswith(thought)  # all that came, however much that was
    assert not talk.engine.busy
    assert reply_of(talk.say("T")).answer == "It is 42."


def test_a_queued_reply_can_be_stopped_before_it_begins(talk: Talk) -> None:
    numbers = [talk.engine.generate([{"role": "user", "content": "R"}]) for _ in range(2)]
    talk.engine.stop()
    reasons = [only([e for e in talk.rest(number) if e.reply == number], Done).reason for number in numbers]
    assert reasons[1] == "stopped"


def test_budget_ends_the_thought_and_goes_on(talk: Talk) -> None:
    events = talk.say("R", ReplyOptions(think_budget=6))
    end = only(events, ThinkEnd)
    assert end.why == "budget"
    fed = len("\n\nTime to answer.\n</think>")  # one token a character in this vocabulary
    assert end.tokens == 6 + fed
    assert reply_of(events).thought == "Well, hmm and hmm and\n\nTime to answer."
    assert reply_of(events).answer == "So yes."
    assert only(events, Done).reason == "stop"


def test_answer_now(talk: Talk) -> None:
    number = talk.engine.generate([{"role": "user", "content": "R"}])
    talk.engine.answer_now()
    events = talk.rest(number)
    assert only(events, ThinkEnd).why == "answer_now"
    assert reply_of(events).answer == "So yes."


def test_thinking_on_and_off_without_a_switch_in_the_template(talk: Talk) -> None:
    thinking = talk.say("Q", ReplyOptions(think="on"))  # the prompt now ends in ">"
    assert reply_of(thinking).thought == "So yes."
    plain = talk.say("R", ReplyOptions(think="off"))  # and in a newline
    assert not reply_of(plain).thoughts
    assert reply_of(plain).answer == "It is 42."


def test_a_template_that_opens_the_thought(opening: Path, tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    with talk.engine:
        talk.engine.load(opening)
        events = talk.say("a")
    kinds = [type(event) for event in events if not isinstance(event, PromptProgress)]
    assert kinds == [ThinkStart, ThinkDelta, ThinkEnd, TextDelta, Stats, Done]
    assert (reply_of(events).thought, reply_of(events).answer) == ("so", "done")


def test_channels_whose_marks_are_control_tokens(channels: Path, tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    with talk.engine:
        talk.engine.load(channels)
        thinking = talk.say("H", ReplyOptions(max_tokens=17))
        answered = talk.say("H", ReplyOptions(max_tokens=7, think_budget=5))
    # a fence that the thought leaves open does not hide a control token
    assert reply_of(thinking).thoughts == ["```hm", "```hm"]
    assert reply_of(thinking).answer == ""
    assert only(thinking, Stats).thought_tokens == 17 - 3  # the last marks have not become anything yet
    # "<|channel|>analysis<|message|>```hm" is the budget; then the end, and the beginning of the answer, are fed
    assert only(answered, ThinkEnd).why == "budget"
    assert reply_of(answered).thought == "```hm\n\nTime to answer."
    assert reply_of(answered).answer == "```hm"


def converse(talk: Talk, session: Session, text: str, options: ReplyOptions | None = None) -> list[AnyEvent]:
    """One more turn; the events of its reply, and of what the engine does after it."""
    session.ask(text)
    number = talk.engine.generate(session.context(), options)
    events = talk.until(lambda event: isinstance(event, Prepared | Failed))
    session.answered(reply_of([event for event in events if event.reply == number]))
    return events


def test_only_what_is_new_is_evaluated(talk: Talk) -> None:
    """A thought leaves the context and the short answer is read again, before the next message comes."""
    session = Session()
    first = converse(talk, session, "T")
    assert reply_of(first).answer == "It is 42."
    # "<bos>user:T<end_of_turn>" stays of the prompt; the thought goes; the answer and what surrounds it, the beginning
    # of the next turn too, are evaluated. As text, "It" is one token and " is 42." one a character.
    shared = 1 + len("user:T") + 1
    ready = shared + len("assistant:") + 8 + 1 + len("user:")
    assert only(first, Prepared).evaluated == ready - shared
    assert only(first, Prepared).context_tokens == ready
    second = converse(talk, session, "abQ")
    stats = only(second, Stats)
    assert stats.reused_tokens == ready
    assert stats.prompt_tokens - stats.reused_tokens == len("abQ") + 1 + 1  # the end of the turn, the generation prompt
    progress = next(event for event in second if isinstance(event, PromptProgress))
    assert (progress.done, progress.total) == (stats.reused_tokens, stats.prompt_tokens)


def test_a_message_that_comes_at_once_does_not_wait(talk: Talk) -> None:
    numbers = [talk.engine.generate([{"role": "user", "content": "T"}]) for _ in range(3)]
    events = talk.rest(numbers[-1])
    assert [event.reply for event in events if isinstance(event, Done)] == numbers
    assert not [event for event in events if isinstance(event, Prepared)]


def test_a_full_context_drops_the_oldest_turns(small: Talk) -> None:
    session = Session("Be kind.")
    dropped = []
    for number in range(12):
        events = converse(small, session, f"{number:02} " + "y" * 20 + "Q")
        assert only(events, Done).reason == "stop"
        assert reply_of(events).answer == "xyz"
        assert only(events, Stats).prompt_tokens <= 256 - 256 // 4
        dropped += [(number, event.turns) for event in events if isinstance(event, TurnsDropped)]
    # told when it happens, in whole turns, and seldom: each drop leaves room for several turns
    assert dropped
    assert all(turns % 2 == 0 for _, turns in dropped)
    assert all(later - earlier >= 2 for (earlier, _), (later, _) in pairwise(dropped))
    stopped = small.say("a" * 300 + "T")
    assert only(stopped, Failed).exit_code == 2  # one message that does not fit is nothing to drop


def test_or_it_stops_where_that_is_wished(small: Talk) -> None:
    session, options = Session(), ReplyOptions(overflow="stop")
    for _ in range(12):
        events = converse(small, session, "y" * 20 + "Q", options)
        if any(isinstance(event, Failed) for event in events):
            break
    failed = only(events, Failed)
    assert (failed.exit_code, failed.crashed) == (2, False)
    assert "the context holds 256" in failed.message
    assert not [event for event in events if isinstance(event, TurnsDropped)]


def test_a_reply_that_fills_the_context_goes_on_without_the_oldest_turns(small: Talk) -> None:
    session = Session()
    for _ in range(3):
        converse(small, session, "y" * 20 + "Q")
    session.ask("L")
    number = small.engine.generate(session.context(), ReplyOptions(max_tokens=150, loops="off"))
    events = [event for event in small.rest(number) if event.reply == number]
    stats = only(events, Stats)
    assert only(events, Done).reason == "length"
    assert stats.answer_tokens == 150
    assert only(events, TurnsDropped).turns
    assert reply_of(events).answer == "la li" * 75  # nothing was lost or said twice


def test_sampling_can_change_in_the_middle_of_a_reply(talk: Talk) -> None:
    options = ReplyOptions(max_tokens=20_000, temperature=0, loops="off", seed=1)
    number = talk.engine.generate([{"role": "user", "content": "D"}], options)
    begun = talk.until(lambda event: isinstance(event, TextDelta) and len(event.text) > 10)
    talk.engine.set_sampling(temperature=1.0)
    more = talk.until(lambda event: isinstance(event, TextDelta) and len(set(event.text)) == 2)
    talk.engine.stop()
    talk.rest(number)
    assert len(set(reply_of(begun).answer)) == 1  # the first of equals, again and again
    assert set(reply_of(more).answer) == {"0", "1"}


def test_a_loop_is_told_once_and_nothing_else(talk: Talk) -> None:
    events = talk.say("R", ReplyOptions(max_tokens=400))
    loop = only(events, LoopSuspected)
    assert (loop.period, loop.thought) == (2, True)
    assert loop.count >= 32
    assert only(events, ThinkEnd).why == "cut"
    assert not [event for event in talk.say("R", ReplyOptions(max_tokens=400, loops="off")) if is_loop(event)]


def test_a_loop_is_ended_where_that_is_wished(talk: Talk) -> None:
    events = talk.say("R", ReplyOptions(loops="stop"))
    end = only(events, ThinkEnd)
    assert end.why == "loop"
    assert end.tokens < 3 * 64 + 30
    assert reply_of(events).answer == "So yes."
    assert only(events, Done).reason == "stop"
    answer = talk.say("L", ReplyOptions(loops="stop"))
    assert only(answer, Done).reason == "loop"
    assert only(answer, Stats).answer_tokens <= 128
    assert not only(answer, LoopSuspected).thought


def is_loop(event: AnyEvent) -> bool:
    return isinstance(event, LoopSuspected)


def test_what_was_read_survives_a_restart(scripted: Path, tmp_path: Path) -> None:
    state, session = tmp_path / "chats" / "one.kv", Session()
    first, second = Talk(tmp_path), Talk(tmp_path)
    with first.engine:
        first.engine.load(scripted)
        ready = only(converse(first, session, "T"), Prepared).context_tokens
        first.engine.save_state(state)
        saved = only(first.until(lambda event: isinstance(event, StateSaved)), StateSaved)
    assert (saved.tokens, saved.error) == (ready, "")
    assert saved.size_bytes == state.stat().st_size
    with second.engine:
        second.engine.load(scripted)
        second.engine.load_state(state)
        loaded = only(second.until(lambda event: isinstance(event, StateLoaded)), StateLoaded)
        assert (loaded.tokens, loaded.reason) == (ready, "")
        events = converse(second, session, "abQ")
        assert only(events, Stats).reused_tokens == ready
        assert reply_of(events).answer == "xyz"


def test_a_state_that_is_not_this_models_is_left_alone(scripted: Path, opening: Path, tmp_path: Path) -> None:
    state = tmp_path / "one.kv"
    talk = Talk(tmp_path)

    def load() -> str:
        talk.engine.load_state(state)
        return only(talk.until(lambda event: isinstance(event, StateLoaded)), StateLoaded).reason

    with talk.engine:
        talk.engine.load(scripted)
        assert load() == "there is no saved state"
        talk.say("T")
        talk.engine.save_state(state)
        talk.engine.load(opening)
        assert "another model" in load()
        talk.engine.load(scripted, LoadSettings(n_ctx=256))
        assert load() == ""
        with state.open("r+b") as file:
            file.truncate(1000)
        assert load() == "the file is damaged"
        talk.engine.save_state(Path("/proc/nothing/one.kv"))
        assert only(talk.until(lambda event: isinstance(event, StateSaved)), StateSaved).error
        assert reply_of(talk.say("T")).answer == "It is 42."


def test_the_same_seed_says_the_same(talk: Talk) -> None:
    first, again, other = (reply_of(talk.say("D", ReplyOptions(seed=seed, max_tokens=64))).answer for seed in (7, 7, 8))
    assert first == again
    assert set(first) == {"0", "1"}
    assert other != first
    assert set(reply_of(talk.say("D", ReplyOptions(temperature=0, max_tokens=64))).answer) < {"0", "1"}


def test_killed_in_the_middle_of_a_reply(talk: Talk) -> None:
    number = talk.engine.generate([{"role": "user", "content": "R"}])
    begun = talk.until(lambda event: isinstance(event, ThinkDelta))
    pid = talk.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    events = begun + talk.rest(number)
    failed = only(events, Failed)
    assert failed.crashed
    assert "SIGKILL" in failed.message
    assert any("llama" in line for line in failed.log)
    assert reply_of(events).message.thought.startswith("Well,")
    assert not talk.engine.busy
    # the next message starts another process with the same model
    assert reply_of(talk.say("T")).answer == "It is 42."
    assert talk.engine.pid != pid


@pytest.mark.parametrize("asked", [False, True])
def test_a_child_that_hangs_is_ended(scripted: Path, tmp_path: Path, asked: bool) -> None:
    patience = Patience(idle=60, stop=0.5) if asked else Patience(idle=1)
    talk = Talk(tmp_path / "logs", patience)
    with talk.engine:
        talk.engine.load(scripted)
        number = talk.engine.generate([{"role": "user", "content": "R"}])
        begun = talk.until(lambda event: isinstance(event, ThinkDelta))
        assert talk.engine.pid is not None
        os.kill(talk.engine.pid, signal.SIGSTOP)
        if asked:
            talk.engine.stop()
        events = begun + talk.rest(number)
        failed = only(events, Failed)
        assert failed.crashed
        assert failed.message.startswith("the engine hung: it did")
        assert reply_of(events).message.thought.startswith("Well,")
        assert reply_of(talk.say("T")).answer == "It is 42."


def test_killed_while_idle(talk: Talk) -> None:
    talk.until(lambda event: isinstance(event, Loaded))
    pid = talk.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSEGV)
    failed = only(talk.until(lambda event: isinstance(event, Failed)), Failed)
    assert (failed.reply, failed.crashed) == (0, True)
    assert "SIGSEGV" in failed.message
    assert reply_of(talk.say("T")).answer == "It is 42."


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_bad_file_is_the_persons_fault_and_the_engine_lives(
    content: bytes | None, scripted: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(scripted.read_bytes()[:50_000] if content is None else content)
    talk = Talk(tmp_path)
    with talk.engine:
        talk.engine.load(bad)
        failed = only(talk.until(lambda event: isinstance(event, Failed)), Failed)
        assert (failed.exit_code, failed.crashed, failed.reply) == (2, False, 0)
        assert str(bad) in failed.message
        assert only(talk.say("T"), Failed).message == failed.message
        talk.engine.load(scripted)
        assert reply_of(talk.say("T")).answer == "It is 42."


def test_modules_in_the_persons_directory_are_not_taken_for_ours(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "numpy.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    talk = Talk(tmp_path / "logs")
    with talk.engine:
        talk.engine.load(scripted)
        assert reply_of(talk.say("T")).answer == "It is 42."


def test_several_engines_at_once(scripted: Path, tmp_path: Path) -> None:
    talks = [Talk(tmp_path) for _ in range(2)]
    with talks[0].engine, talks[1].engine:
        for talk in talks:
            talk.engine.load(scripted, LoadSettings(n_threads=1))
        numbers = [talk.engine.generate([{"role": "user", "content": "T"}]) for talk in talks]
        answers = [reply_of(talk.rest(number)).answer for talk, number in zip(talks, numbers, strict=True)]
    assert answers == ["It is 42."] * 2


def test_close_ends_the_process_and_leaves_no_log(talk: Talk, tmp_path: Path) -> None:
    talk.until(lambda event: isinstance(event, Loaded))
    pid, log = talk.engine.pid, talk.engine.log
    assert pid is not None
    assert log is not None
    assert log.exists()
    talk.engine.generate([{"role": "user", "content": "L"}])
    talk.engine.close(timeout=30)
    assert not psutil.pid_exists(pid)
    assert not log.exists()
    assert not list((tmp_path / "logs").iterdir())


def test_no_orphan_when_the_parent_is_killed(scripted: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time, threading\n"
        "from pathlib import Path\n"
        "from ftllm.chat.engine import Engine\n"
        "engine = Engine(lambda event: None, log_directory=Path(sys.argv[2]))\n"
        "engine.load(Path(sys.argv[1]))\n"
        "engine.generate([{'role': 'user', 'content': 'L'}])\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(scripted), str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(timeout=60)


def worker(commands: list[Mapping[str, object]], **environment: str) -> subprocess.CompletedProcess[str]:
    """The child by itself, its input closed after `commands`."""
    return subprocess.run(
        [sys.executable, "-m", "ftllm.chat.worker"],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, **environment},
    )


def test_the_process_goes_when_its_input_does() -> None:
    done = worker([])
    assert (done.returncode, done.stdout) == (0, "")
