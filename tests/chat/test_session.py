"""What a conversation keeps, and what of it the model sees again."""

from __future__ import annotations

import pytest

from ftllm.chat.events import Done, Failed, Stats, TextDelta, ThinkDelta, ThinkEnd, ThinkStart
from ftllm.chat.session import ChatMessage, OneThought, Reply, Session, thought_title, thoughts_of

STATS = Stats(9.0, 1, 12, 0, 7, 4, 7.4, 0.1, 50.0, 256, 23)


def reply_of(*events: object) -> Reply:
    reply = Reply()
    for event in events:
        reply.feed(event)  # type: ignore[arg-type]
    return reply


def test_a_reply_is_folded_into_a_message() -> None:
    reply = reply_of(
        ThinkStart(1.0, 1),
        ThinkDelta(1.1, 1, "Let me", 2),
        ThinkDelta(1.2, 1, " see.\n", 4),
        ThinkEnd(8.4, 1, "closed", 7.4, 5),
        TextDelta(8.5, 1, "It is"),
        TextDelta(8.6, 1, " 42.\n"),
        STATS,
        Done(9.0, 1, "stop"),
    )
    message = reply.message
    assert (message.thought, message.content) == ("Let me see.", "It is 42.")
    assert (message.thought_seconds, message.thought_tokens, message.answer_tokens) == (7.4, 5, 4)
    assert (message.stop_reason, message.thought_end) == ("stop", "closed")
    assert not reply.thinking


def test_a_crash_in_a_thought_keeps_what_was_thought_and_how_long() -> None:
    failed = Failed(99.0, 1, "the engine was ended by SIGKILL", "", crashed=True)
    reply = reply_of(ThinkStart(1.0, 1), ThinkDelta(3.5, 1, "half a tho", 3), failed)
    assert reply.message.thought == "half a tho"
    assert reply.message.thought_seconds == 2.5
    assert (reply.message.stop_reason, reply.message.thought_end) == ("failed", "interrupted")


def test_several_thoughts_keep_their_places_and_ends() -> None:
    failed = Failed(99.0, 1, "the engine was ended by SIGKILL", "", crashed=True)
    events = (
        *(ThinkStart(0, 1), ThinkDelta(0, 1, "one\n", 1), ThinkEnd(1, 1, "budget", 1.0, 3)),
        *(ThinkStart(1, 1), ThinkEnd(1, 1, "closed", 0.0, 2)),  # an empty one
        TextDelta(2, 1, "\n\nfirst "),
        *(ThinkStart(3, 1), ThinkDelta(4, 1, "two", 1)),
    )
    one, two = OneThought("one", 1.0, 3, "budget", 0), OneThought("two", 1.0, 0, "interrupted", 6)
    assert reply_of(*events).message.thoughts == (one, two)
    message = reply_of(*events, failed).message
    assert (message.content, message.thought, message.thoughts) == ("first", "one\n\ntwo", (one, two))
    assert message.thought_seconds == 2.0


def test_one_thought_is_a_list_of_one() -> None:
    assert thoughts_of(ChatMessage("assistant", "7")) == []
    (one,) = thoughts_of(ChatMessage("assistant", "7", "hm", 1.5, 3, thought_end="loop"))
    assert one == OneThought("hm", 1.5, 3, "loop", 0)


def test_an_empty_thought_has_no_end_to_tell() -> None:
    ended = (ThinkStart(0, 1), ThinkDelta(0, 1, "hm", 1), ThinkEnd(1, 1, "budget", 1, 3))
    empty = (ThinkStart(1, 1), ThinkEnd(1, 1, "closed", 0, 2), TextDelta(2, 1, "1"))
    assert reply_of(*empty).message.thought_end is None
    assert reply_of(*ended, *empty).message.thought_end == "budget"


def test_thoughts_and_empty_replies_do_not_come_back() -> None:
    session = Session(system="Be kind.")
    session.ask("one")
    session.answered(
        reply_of(ThinkStart(0, 1), ThinkDelta(0, 1, "secret", 1), ThinkEnd(1, 1, "closed", 1, 3), TextDelta(2, 1, "1"))
    )
    session.ask("two")
    session.answered(reply_of(ThinkStart(0, 2), ThinkDelta(0, 2, "cut off", 1), Done(1, 2, "stopped")))
    session.ask("three")
    assert session.context() == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two\n\nthree"},
    ]
    assert session.messages[3].thought == "cut off"


@pytest.mark.parametrize(
    ("seconds", "title"),
    [
        (7.4, "Thought for 7.40 seconds"),
        (0.0, "Thought for 0.00 seconds"),
        (59.994, "Thought for 59.99 seconds"),
        (59.996, "Thought for 1 min 0.00 s"),
        (67.4, "Thought for 1 min 7.40 s"),
        (3600.0, "Thought for 60 min 0.00 s"),
    ],
)
def test_titles(seconds: float, title: str) -> None:
    assert thought_title(seconds) == title
