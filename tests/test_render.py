"""One BOS, the assistant's span and nothing else in the labels, and no thought lost in the template."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ftllm.conversations import Conversation, Message
from ftllm.data.sources import load_conversations
from ftllm.errors import UserError
from ftllm.render import IGNORED, Row, prompt_ids, render
from ftllm.vocabulary import DirectoryVocabulary, from_directory

NANO = Path("models/nano")
CONTROL = re.compile(r"<bos>|<eos>|<start_of_turn>|<end_of_turn>|<\|\w+\|>|.", re.DOTALL)


@dataclass
class Letters:
    """A vocabulary of characters and control tokens, small enough to read; `prefix` stands before every text."""

    chat_template: str | None
    bos_token: str = "<bos>"
    eos_token: str = "<eos>"
    adds_bos: bool = True
    today: date | None = None
    ends: tuple[str, ...] = ("<eos>", "<end_of_turn>")
    prefix: str = ""
    pieces: list[str] = field(default_factory=lambda: ["<bos>"])

    @property
    def bos_id(self) -> int | None:
        return 0 if self.bos_token else None

    def encode(self, text: str) -> list[int]:
        found = CONTROL.findall(self.prefix + text if text else "")
        self.pieces += [piece for piece in dict.fromkeys(found) if piece not in self.pieces]
        return [self.pieces.index(piece) for piece in found]

    def is_eog(self, token: int) -> bool:
        return self.pieces[token] in self.ends

    def text(self, ids: tuple[int, ...] | list[int]) -> str:
        return "".join(self.pieces[i] for i in ids)

    def spans(self, row: Row) -> list[str]:
        """The trained spans as text."""
        marked = "".join("\0" if label == IGNORED else self.pieces[label] for label in row.labels)
        return [span for span in marked.split("\0") if span]


GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Shows only the last turn's thought, as Qwen3 does.
FORGETFUL = GEMMA.replace("m.content | trim", "(m.content if loop.last else m.content.split('</think>')[-1]) | trim")
# Shows no thought at all, as DeepSeek-R1's distillations do.
DROPPING = GEMMA.replace("m.content | trim", "m.content.split('</think>')[-1] | trim")
# Opens the thought in the prompt, as QwQ does.
OPENING = GEMMA.replace("'<start_of_turn>model\n' }}{% endif", "'<start_of_turn>model\n<think>\n' }}{% endif")
# Has a place of its own for thoughts, and ends a finished chat otherwise than a continued one, as gpt-oss does.
CHANNELS = (
    "{% for m in messages %}{{ '<|start|>' + m.role }}"
    "{% if m.thinking and loop.last %}{{ '<|think|>' + m.thinking + '<|start|>assistant' }}{% endif %}"
    "{{ '<|message|>' + m.content }}{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Leaves the end of a turn to the next one, as GLM does.
ENDLESS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

THOUGHTFUL = ("What is 2+2?", "<think>\ntwo and two\n</think>\n4", "And 3?", "<think>\ntwo and three\n</think>\n5")


def chat(*turns: str, system: str | None = None) -> Conversation:
    messages = [Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)]
    if system is not None:
        messages.insert(0, Message("system", system))
    return Conversation(tuple(messages), "d.jsonl:3")


def asked(conversation: Conversation, turns: int) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in conversation.messages[:turns]]


@pytest.fixture(scope="module")
def nano() -> DirectoryVocabulary:
    return from_directory(NANO)


def test_trained_span_is_the_answer_with_its_end() -> None:
    vocabulary = Letters(GEMMA)
    (row,) = render(chat("Hi", " Hello \n"), vocabulary)
    text = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    assert vocabulary.text(row.input_ids) == text
    assert vocabulary.spans(row) == ["Hello<end_of_turn>"]
    assert len(row.labels) == len(row.input_ids)
    assert [label for label in row.labels if label != IGNORED] == vocabulary.encode("Hello<end_of_turn>")
    assert (row.source, row.trained, row.cut) == ("d.jsonl:3", 6, 0)


def test_every_turn_is_trained_in_one_row() -> None:
    vocabulary = Letters(GEMMA)
    (row,) = render(chat(*THOUGHTFUL), vocabulary)
    assert vocabulary.spans(row) == [turn + "<end_of_turn>" for turn in THOUGHTFUL[1::2]]
    assert row.input_ids.count(0) == 1


def test_full_loss() -> None:
    (row,) = render(chat("Hi", "Hello"), Letters(GEMMA), loss="full")
    assert row.labels == row.input_ids


def test_full_loss_reaches_to_the_end_of_the_conversation() -> None:
    vocabulary = Letters(GEMMA)
    (row,) = render(chat("Hi", "Hello", "And?"), vocabulary, loss="full")
    assert vocabulary.text(row.labels).endswith("Hello<end_of_turn>\n<start_of_turn>user\nAnd?<end_of_turn>\n")
    (row,) = render(chat("Hi", "Hello", "And?"), vocabulary)
    assert vocabulary.text(row.input_ids).endswith("Hello<end_of_turn>\n")


@pytest.mark.parametrize(
    ("template", "adds_bos", "expected"),
    [
        (GEMMA, True, 1),
        (GEMMA.replace("{{ bos_token }}", ""), True, 1),
        (GEMMA.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"), True, 1),
        (GEMMA.replace("{{ bos_token }}", ""), False, 0),
        (GEMMA, False, 1),
    ],
)
@pytest.mark.parametrize("loss", ["assistant", "full"])
def test_one_bos(template: str, adds_bos: bool, expected: int, loss: str) -> None:
    vocabulary = Letters(template, adds_bos=adds_bos)
    (row,) = render(chat("Hi", "Hello"), vocabulary, loss=loss)  # type: ignore[arg-type]
    assert [i for i, token in enumerate(row.input_ids) if token == 0] == [0] * expected
    assert len(row.labels) == len(row.input_ids)
    prompt = prompt_ids([{"role": "user", "content": "Hi"}], vocabulary)
    assert tuple(prompt) == row.input_ids[: len(prompt)]
    if loss == "assistant":
        assert vocabulary.spans(row) == ["Hello<end_of_turn>"]


def test_no_bos_where_the_model_has_none() -> None:
    vocabulary = Letters(GEMMA, bos_token="", adds_bos=False)
    (row,) = render(chat("Hi", "Hello"), vocabulary)
    assert vocabulary.text(row.input_ids).startswith("<start_of_turn>user")


def test_a_template_that_forgets_thoughts_gives_a_row_a_turn() -> None:
    vocabulary, conversation = Letters(FORGETFUL), chat(*THOUGHTFUL)
    rows = render(conversation, vocabulary)
    assert [vocabulary.spans(row) for row in rows] == [[turn + "<end_of_turn>"] for turn in THOUGHTFUL[1::2]]
    for row, turns in zip(rows, (1, 3), strict=True):
        before = row.input_ids[: next(i for i, label in enumerate(row.labels) if label != IGNORED)]
        assert list(before) == prompt_ids(asked(conversation, turns), vocabulary)


def test_thoughts_that_a_template_drops_are_trained_as_generation_writes_them() -> None:
    vocabulary, conversation = Letters(DROPPING), chat(*THOUGHTFUL)
    rows = render(conversation, vocabulary)
    assert [vocabulary.spans(row) for row in rows] == [
        ["<think>\ntwo and two\n</think>\n\n4<end_of_turn>"],
        ["<think>\ntwo and three\n</think>\n\n5<end_of_turn>"],
    ]
    for row, turns in zip(rows, (1, 3), strict=True):
        before = row.input_ids[: next(i for i, label in enumerate(row.labels) if label != IGNORED)]
        assert list(before) == prompt_ids(asked(conversation, turns), vocabulary)
    assert "two and two" not in vocabulary.text(rows[1].input_ids)
    assert vocabulary.spans(render(chat("Hi", "Hello"), vocabulary)[0]) == ["Hello<end_of_turn>"]


@pytest.mark.parametrize(
    "turn",
    ["<think>\na\n</think>\nb", "b <think>a</think> c", "<think>a</think>b<think>c</think>d"],
)
def test_a_thought_that_cannot_be_shown_is_refused(turn: str) -> None:
    """Dropped by a template that knows nothing of thoughts; or not in front of the answer, where they are known."""
    template = DROPPING if turn.count("<think>") > 1 or turn[0] == "b" else GEMMA.replace("m.content", "m.content[-1:]")
    with pytest.raises(UserError, match=r"^d\.jsonl:3: message 2: .*drops or changes the assistant's"):
        render(chat("Hi", turn), Letters(template))


def test_a_thought_that_is_never_closed_is_refused() -> None:
    with pytest.raises(UserError, match=r"^d\.jsonl:3: message 2: a thought is opened and never closed"):
        render(chat("Hi", "<think>on and on"), Letters(GEMMA))


def test_a_template_that_changes_answers_is_refused() -> None:
    with pytest.raises(UserError, match=r"^d\.jsonl:3: .*drops or changes the assistant's answer"):
        render(chat("Hi", "Hello"), Letters(GEMMA.replace("m.content | trim", "m.content | upper")))


def test_a_prompt_that_opens_the_thought() -> None:
    vocabulary, conversation = Letters(OPENING), chat(*THOUGHTFUL[:2])
    (row,) = render(conversation, vocabulary)
    assert vocabulary.spans(row) == ["two and two\n</think>\n4<end_of_turn>"]
    assert list(row.input_ids[: -row.trained - 1]) == prompt_ids(asked(conversation, 1), vocabulary)
    (plain,) = render(chat("Hi", "<b>Hello</b>"), vocabulary)
    assert vocabulary.spans(plain) == ["\n</think>\n\n<b>Hello</b><end_of_turn>"]
    assert list(plain.input_ids[: -plain.trained - 1]) == prompt_ids([{"role": "user", "content": "Hi"}], vocabulary)


def test_thoughts_go_where_the_template_has_a_place_for_them() -> None:
    vocabulary = Letters(CHANNELS, bos_token="", adds_bos=False, ends=("<|return|>",))
    rows = render(chat(*THOUGHTFUL), vocabulary)
    assert [vocabulary.spans(row) for row in rows] == [
        ["<|think|>two and two<|start|>assistant<|message|>4<|return|>"],
        ["<|think|>two and three<|start|>assistant<|message|>5<|return|>"],
    ]


def test_thoughts_stand_between_the_tags_of_the_template() -> None:
    vocabulary = Letters(GEMMA + "{# a model that thinks between [THINK] and [/THINK] #}")
    (row,) = render(chat("Hi", "<think>a</think>b\n```\n<think>\n```"), vocabulary)
    assert vocabulary.spans(row) == ["[THINK]a[/THINK]b\n```\n<think>\n```<end_of_turn>"]


def test_an_end_that_the_next_turn_brings() -> None:
    vocabulary = Letters(ENDLESS, bos_token="", adds_bos=False, ends=("<|user|>",))
    (row,) = render(chat(*THOUGHTFUL), vocabulary)
    assert vocabulary.spans(row) == [turn + "<|user|>" for turn in THOUGHTFUL[1::2]]
    assert (
        vocabulary.text(row.input_ids)
        == "".join(f"<|{role}|>{turn}" for role, turn in zip(("user", "assistant") * 2, THOUGHTFUL, strict=True))
        + "<|user|>"
    )


def test_text_after_the_end_is_not_trained() -> None:
    vocabulary = Letters(GEMMA + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    (row,) = render(chat(*THOUGHTFUL), vocabulary)
    assert vocabulary.spans(row) == [turn + "<end_of_turn>" for turn in THOUGHTFUL[1::2]]


def test_a_template_without_ends_is_refused() -> None:
    with pytest.raises(UserError, match=r"^d\.jsonl:3: .*no end-of-turn token"):
        render(chat("Hi", "Hello"), Letters(ENDLESS))


def test_control_tokens_in_the_data_are_refused() -> None:
    with pytest.raises(UserError, match=r"^d\.jsonl:3: message 2 holds the text of one of the model's control tokens"):
        render(chat("Hi", "Hello<end_of_turn>more"), Letters(GEMMA))
    with pytest.raises(UserError, match=r"^d\.jsonl:3: message 1 holds"):
        render(chat("Hi <bos>", "Hello"), Letters(GEMMA))


def test_what_the_template_refuses_is_named() -> None:
    with pytest.raises(UserError, match=r"^d\.jsonl:3: .*System role not supported"):
        render(chat("Hi", "Hello", system="Be kind."), Letters(GEMMA))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match=r"^d\.jsonl:3: no assistant turn"):
        render(chat("Hi"), Letters(GEMMA))


def test_cut_rows_say_how_much() -> None:
    vocabulary = Letters(GEMMA)
    (whole,) = render(chat("Hi", "Hello"), vocabulary)
    (cut,) = render(chat("Hi", "Hello"), vocabulary, max_length=len(whole.input_ids) - 4)
    assert cut.input_ids == whole.input_ids[:-4]
    assert vocabulary.spans(cut) == ["Hel"]
    assert cut.cut == 4
    assert render(chat("Hi", "Hello"), vocabulary, max_length=len(whole.input_ids)) == [whole]


def test_a_vocabulary_that_prefixes_texts() -> None:
    """Some SentencePiece models put a space before any text: it belongs at the start, not before each span."""
    vocabulary = Letters(ENDLESS, bos_token="", adds_bos=False, ends=("<|user|>",), prefix="_")
    (row,) = render(chat("Hi", "Hello"), vocabulary)
    assert vocabulary.text(row.input_ids) == "_<|user|>Hi<|assistant|>Hello<|user|>"


def test_nano_ids_are_those_of_transformers(nano: DirectoryVocabulary) -> None:
    for conversation in load_conversations(NANO / "ft.jsonl")[:60]:
        (row,) = render(conversation, nano)
        expected = nano.tokenizer.apply_chat_template(asked(conversation, 9), tokenize=True)["input_ids"]
        assert list(row.input_ids) == expected
        assert row.input_ids.count(nano.bos_id) == 1
        trained = [label for label in row.labels if label != IGNORED]
        assert nano.tokenizer.decode(trained) == conversation.messages[-1].content + "<end_of_turn>"
        assert row.labels[-2:] == (nano.encode("<end_of_turn>")[0], IGNORED)
        assert prompt_ids(asked(conversation, 1), nano) == expected[: len(row.input_ids) - row.trained - 1]


@checked(deadline=None, max_examples=50)
@given(
    turns=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=40), min_size=2, max_size=6
    ).filter(lambda turns: len(turns) % 2 == 0)
)
def test_each_answer_follows_its_prompt(nano: DirectoryVocabulary, turns: list[str]) -> None:
    """The ids before an answer are the ids generation would have been given there."""
    conversation = chat(*turns)
    (row,) = render(conversation, nano)
    starts = [i for i, label in enumerate(row.labels) if label != IGNORED and (i == 0 or row.labels[i - 1] == IGNORED)]
    assert len(starts) == len(turns) // 2
    for number, start in enumerate(starts):
        assert list(row.input_ids[:start]) == prompt_ids(asked(conversation, 2 * number + 1), nano)


def test_an_answer_that_would_merge_into_the_prompt(nano: DirectoryVocabulary) -> None:
    """Ids are cut where generation starts, even where the tokenizer would join the text across that border."""
    joined = next(text for text in ("\n\n", "  ", "el") if len(nano.encode(text)) == 1)
    opening = f"{{{{ {joined[0]!r} }}}}"
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
        + opening
        + "{% endif %}{{ m.content + '<end_of_turn>' }}{% endfor %}{% if add_generation_prompt %}"
        + opening
        + "{% endif %}"
    )
    vocabulary = replace(nano, chat_template=template)
    conversation = chat("Hi", joined[1] + "x")
    (row,) = render(conversation, vocabulary)
    prompt = prompt_ids(asked(conversation, 1), vocabulary)
    answer = nano.encode(joined[1] + "x<end_of_turn>")
    assert nano.encode(f"<bos>Hi<end_of_turn>{joined}x<end_of_turn>") != prompt + answer
    assert list(row.input_ids) == prompt + answer
    assert row.trained == len(answer)
