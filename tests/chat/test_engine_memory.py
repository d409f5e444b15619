"""What an engine keeps in its context, and what it does when that is full."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from talking import Talk, only, reply_of

from ftllm.chat.events import (
    AnyEvent,
    Done,
    Failed,
    Prepared,
    PromptProgress,
    StateLoaded,
    StateSaved,
    Stats,
    TurnsDropped,
)
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.session import Session


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
