"""What an engine says, with a real GGUF: thoughts, answers, limits, loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from talking import Talk, only, reply_of

from ftllm.chat.events import (
    AnyEvent,
    Done,
    Loaded,
    LoopSuspected,
    PromptProgress,
    Stats,
    TextDelta,
    ThinkDelta,
    ThinkEnd,
    ThinkStart,
)
from ftllm.chat.options import ReplyOptions, SamplingOptions
from ftllm.chat.session import ChatMessage, continuation_of


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


def test_sampling_can_change_in_the_middle_of_a_reply(talk: Talk) -> None:
    options = ReplyOptions(max_tokens=20_000, temperature=0, loops="off", seed=1)
    number = talk.engine.generate([{"role": "user", "content": "D"}], options)
    begun = talk.until(lambda event: isinstance(event, TextDelta) and len(event.text) > 10)
    talk.engine.set_sampling(SamplingOptions(temperature=1.0))
    talk.engine.set_sampling(SamplingOptions(top_p=1.0))  # before the next token: the first change stays
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


def test_the_same_seed_says_the_same(talk: Talk) -> None:
    first, again, other = (reply_of(talk.say("D", ReplyOptions(seed=seed, max_tokens=64))).answer for seed in (7, 7, 8))
    assert first == again
    assert set(first) == {"0", "1"}
    assert other != first
    assert set(reply_of(talk.say("D", ReplyOptions(temperature=0, max_tokens=64))).answer) < {"0", "1"}


def test_drafts_change_nothing_of_a_reply(talk: Talk) -> None:
    for question, drawn in (("L", ReplyOptions(temperature=0)), ("T", ReplyOptions()), ("D", ReplyOptions(seed=3))):
        options = replace(drawn, max_tokens=150, loops="off")
        plain = reply_of(talk.say(question, options))
        drafted = reply_of(talk.say(question, replace(options, speculate=True)))
        assert (drafted.thought, drafted.answer) == (plain.thought, plain.answer)
        assert plain.answer
