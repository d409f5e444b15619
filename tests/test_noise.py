"""The burden equals the card's function; the other units keep what they promise."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ftllm.conversations import Conversation, Message
from ftllm.errors import UserError
from ftllm.noise import (
    Curriculum,
    NoiseSettings,
    Unit,
    burden,
    generator,
    shuffle,
)
from ftllm.noise import noised as counted
from ftllm.vocabulary import DirectoryVocabulary, from_directory

FAITHFUL = NoiseSettings(unit="card", protect=False, per_epoch=False)
SPACED = st.text(alphabet=st.one_of(st.sampled_from(" \n\tab1.`$界"), st.characters(codec="utf-8")), max_size=200)


def apply_burden(text: str | None, burden_ratio: float, random: random.Random) -> str:
    """The card's own function, quoted, as an oracle; `random` is the generator it is given here, the module there.

    Source: model card of aifeifei798/gemma-3-27b-it-FT-reasoning, training script, step 3 (DOI 10.57967/hf/7592).
    """
    if not text:
        return ""
    words = text.split(" ")
    if len(words) > 3:
        num_to_shuffle = int(len(words) * burden_ratio)
        indices_to_shuffle = random.sample(range(len(words)), num_to_shuffle)
        shuffled_subset = [words[i] for i in indices_to_shuffle]
        random.shuffle(shuffled_subset)
        shuffled_words = list(words)
        for i, original_index in enumerate(indices_to_shuffle):
            shuffled_words[original_index] = shuffled_subset[i]
        return " ".join(shuffled_words)
    return text


def noised(conversation: Conversation, settings: NoiseSettings, **at: Any) -> Conversation:
    return counted(conversation, settings, **at).conversation


def shuffled(text: str, settings: NoiseSettings, ratio: float, seed: int) -> str:
    return shuffle(text, settings, ratio=ratio, rng=random.Random(seed)).text


def conversation(*turns: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns)), "test.jsonl:1")  # type: ignore[arg-type]


@checked(deadline=None)
@given(text=st.one_of(st.none(), SPACED), ratio=st.floats(0, 1), seed=st.integers())
def test_burden_is_the_cards_function(text: str | None, ratio: float, seed: int) -> None:
    assert burden(text, ratio=ratio, rng=random.Random(seed)) == apply_burden(text, ratio, random.Random(seed))


@checked(deadline=None)
@given(text=SPACED, seed=st.integers(0, 2**32), row=st.integers(0, 10**6), epoch=st.integers(0, 100))
def test_seed_presets_noise_is_the_burden(text: str, seed: int, row: int, epoch: int) -> None:
    after = noised(conversation(text, "yes"), FAITHFUL, seed=seed, epoch=epoch, row=row)
    assert after.messages[0].content == burden(text, rng=generator(seed, 0, row, 0))
    assert after.messages[1].content == "yes"


def test_burden_leaves_short_texts_alone() -> None:
    rng = random.Random(0)
    assert burden("one two three", rng=rng) == "one two three"
    assert burden(None, rng=rng) == burden("", rng=rng) == ""


@pytest.mark.parametrize(("words", "expected"), [(4, 0.25), (10, 0.60), (50, 0.68)])
def test_expected_share_moved(words: int, expected: float) -> None:
    """(int(0.7 n) - 1) / n of distinct pieces move on average."""
    text = " ".join(f"w{i}" for i in range(words))
    counts = [shuffle(text, FAITHFUL, ratio=0.7, rng=random.Random(seed)) for seed in range(2000)]
    assert {one.units for one in counts} == {words}
    assert sum(len(one.spans) for one in counts) / (2000 * words) == pytest.approx(expected, abs=0.015)


@checked(deadline=None)
@given(
    text=SPACED,
    unit=st.sampled_from(["card", "word", "auto"]),
    protect=st.booleans(),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_only_units_change_places(text: str, unit: str, protect: bool, ratio: float, seed: int) -> None:
    settings = NoiseSettings(unit=unit, protect=protect)  # type: ignore[arg-type]
    after, spans, units = shuffle(text, settings, ratio=ratio, rng=random.Random(seed))
    assert sorted(after) == sorted(text)
    assert len(spans) <= units
    if unit == "word":
        assert units == len(text.split())
        changed = [b for a, b in zip(text.split(), after.split(), strict=True) if a != b]
        assert [after[start:end] for start, end in spans] == changed
        assert re.findall(r"\s+", after) == re.findall(r"\s+", text)
        assert sorted(after.split()) == sorted(text.split())


def test_words_leave_white_space_in_place() -> None:
    text = "alpha beta\n\ngamma  delta\tepsilon zeta"
    after = shuffled(text, NoiseSettings(unit="word"), ratio=1, seed=2)
    assert after != text
    assert re.split(r"\w+", after) == re.split(r"\w+", text)


PROTECTED = [
    "```python\nfor i in range(3):\n    print(i, end=' ')\n```",
    "~~~\nnever closed, so code to the end",
    "`a b c`",
    "``a ` b``",
    "https://example.org/a/b?c=d&e=(f)",
    "someone@example.org",
    "$a + b$",
    "$$\\int_0^1 x\\,dx$$",
    "\\[ a = b \\]",
    "\\( a = b \\)",
    "\\begin{align} a &= b \\end{align}",
    "\\frac{a}{b}",
    "42",
    "3.14",
    "1,000,000",
    "12 + 34 - (5 * 6) =",
    "-7",
    "50%",
]


@pytest.mark.parametrize("span", PROTECTED)
def test_protected_spans_stay_whole_and_in_place(span: str) -> None:
    before = "some of these words may well change their places\n"
    text = f"{before}{span}" + ("" if span.startswith("~") else "\nand so may all of these few words")
    settings = NoiseSettings()
    for seed in range(20):
        after = shuffled(text, settings, ratio=1, seed=seed)
        assert after != text
        left, found, _ = after.partition(span)
        assert found
        assert len(left.split()) == len(before.split())
        assert sorted(after.split()) == sorted(text.split())


def test_unprotected_spans_are_shuffled() -> None:
    text = "what is 12 + 34 - 5"
    settings = NoiseSettings(protect=False)
    assert any(shuffled(text, settings, ratio=1, seed=s).split()[2] != "12" for s in range(10))


def test_dollars_are_not_latex() -> None:
    text = "pay $5 for many nice green apples and $6 for pears"
    after = shuffled(text, NoiseSettings(), ratio=1, seed=0).split()
    assert (after[1], after[8]) == ("$5", "$6")
    assert after[2:8] != text.split()[2:8]


@pytest.mark.parametrize(
    "text", ["我昨天在图书馆里看书，今天想去公园散步。", "私は毎日学校で日本語を勉強しています。", "ฉันชอบกินข้าวผัดมาก"]
)
def test_text_without_spaces_is_shuffled_under_auto_only(text: str) -> None:
    assert shuffled(text, NoiseSettings(unit="word"), ratio=0.7, seed=1) == text
    after, spans, units = shuffle(text, NoiseSettings(unit="auto"), ratio=0.7, rng=random.Random(1))
    assert units >= 10
    assert len(spans) >= 0.4 * units
    assert sorted(after) == sorted(text)


def test_east_asian_stops_and_protected_spans_stay() -> None:
    text = "请计算123加456，然后用`print(x)`输出结果。"
    after = shuffled(text, NoiseSettings(), ratio=1, seed=3)
    fixed = [i for i, c in enumerate(text) if not "\u4e00" <= c <= "\u9fff"]
    assert [after[i] for i in fixed] == [text[i] for i in fixed]
    assert after != text


def test_sentences_move_whole() -> None:
    text = "First it rains. Then it snows! Is it cold? It is.\nA headline\nLast comes sun."
    after, _, units = shuffle(text, NoiseSettings(unit="sentence"), ratio=1, rng=random.Random(4))
    assert after != text
    assert "\nA headline\n" in after
    for sentence in ("First it rains.", "Then it snows!", "Is it cold?", "It is.", "Last comes sun."):
        assert sentence in after
    assert units == 6


@pytest.fixture(scope="module")
def nano() -> DirectoryVocabulary:
    return from_directory(Path(__file__).parents[1] / "models" / "nano")


@checked(deadline=None)
@given(text=SPACED, protect=st.booleans(), ratio=st.floats(0, 1), seed=st.integers(0, 99))
def test_tokens_change_places_and_white_space_stays(
    nano: DirectoryVocabulary, text: str, protect: bool, ratio: float, seed: int
) -> None:
    settings = NoiseSettings(unit="token", protect=protect)
    after, spans, units = shuffle(text, settings, ratio=ratio, rng=random.Random(seed), cut=nano.spans)
    assert sorted(after) == sorted(text)
    assert re.findall(r"\s+", after) == re.findall(r"\s+", text)
    assert len(spans) <= units <= len(nano.encode(text))
    if int(ratio * units) < 2:
        assert (after, spans) == (text, ())


@pytest.mark.parametrize("span", PROTECTED)
def test_tokens_respect_protected_spans(nano: DirectoryVocabulary, span: str) -> None:
    text = f"unbelievable troubles happen everywhere\n{span}"
    for seed in range(5):
        after = shuffle(text, NoiseSettings(unit="token"), ratio=1, rng=random.Random(seed), cut=nano.spans).text
        assert after.endswith("\n" + span)
        assert after != text


def test_tokens_are_the_models(nano: DirectoryVocabulary) -> None:
    """What moves is what the tokenizer cuts; a word it has whole stays whole."""
    text = "What is unbelievable about the number of wheels"
    pieces = list(filter(None, (text[start:end].strip() for start, end in nano.spans(text))))
    assert len(pieces) > len(text.split())
    after, spans, units = shuffle(text, NoiseSettings(unit="token"), ratio=1, rng=random.Random(1), cut=nano.spans)
    assert units == len(pieces)
    rest = after.replace(" ", "")
    for piece in sorted(pieces, key=len, reverse=True):
        assert piece in rest
    assert sorted(rest) == sorted("".join(pieces))
    assert len(spans) > units / 2
    with pytest.raises(ValueError, match="tokenizer"):
        shuffle(text, NoiseSettings(unit="token"), ratio=1, rng=random.Random(1))


def test_tokens_that_share_a_character_move_together() -> None:
    """Byte tokens: three of them are one character."""
    text = "ab 界 cd ef"
    cut = [(0, 2), (2, 4), (3, 4), (3, 4), (4, 7), (7, 10)]
    afters = {
        shuffle(text, NoiseSettings(unit="token"), ratio=1, rng=random.Random(seed), cut=lambda _: cut).text
        for seed in range(40)
    }
    assert len(afters) > 10
    for after in afters:
        assert sorted(after.split()) == sorted(text.split())


TURNS = ("tell me a story about a big dog", "no", "tell me a story about a small cat", "yes")


def test_noise_is_a_function_of_its_coordinates() -> None:
    plain, settings = conversation(*TURNS), NoiseSettings()
    first = noised(plain, settings, seed=1, epoch=0, row=0)
    assert first == noised(plain, settings, seed=1, epoch=0, row=0)
    others = [(2, 0, 0), (1, 1, 0), (1, 0, 1)]
    assert all(noised(plain, settings, seed=s, epoch=e, row=r) != first for s, e, r in others)
    same_text = conversation(TURNS[0], "no", TURNS[0], "yes")
    twice = noised(same_text, settings, seed=1, epoch=0, row=0)
    assert twice.messages[0] != twice.messages[2]


def test_known_value() -> None:
    """The text of one coordinate, so that a change of the generator is seen: old runs could not be repeated."""
    after = noised(conversation(*TURNS), NoiseSettings(), seed=3407, epoch=0, row=7)
    assert after.messages[0].content == "about big a story me a dog tell"


def test_static_noise_is_the_same_every_epoch() -> None:
    settings = NoiseSettings(per_epoch=False)
    texts = {noised(conversation(*TURNS), settings, seed=1, epoch=epoch, row=0) for epoch in range(4)}
    assert len(texts) == 1
    assert texts != {conversation(*TURNS)}


def test_last_turn_only() -> None:
    settings = NoiseSettings(turns="last", ratio=1.0)
    after = counted(conversation(*TURNS), settings, seed=1, epoch=0, row=0)
    changed = [a.content == b for a, b in zip(after.conversation.messages, TURNS, strict=True)]
    assert changed == [True, True, False, True]
    assert [bool(spans) for spans in after.spans] == [False, False, True, False]
    assert 0 < after.moved <= 8
    assert after.units == 16


def test_system_and_assistant_turns_stay() -> None:
    long = "these are quite a few words in one turn"
    plain = Conversation((Message("system", long), Message("user", long), Message("assistant", long)), "x:1")
    after = noised(plain, NoiseSettings(ratio=1.0), seed=0, epoch=0, row=0)
    assert [m.content == long for m in after.messages] == [True, False, True]


def test_clean_share() -> None:
    plain = conversation("one two three four five six seven eight", "no")
    settings = NoiseSettings(clean_share=0.25, ratio=1.0)
    clean = sum(noised(plain, settings, seed=0, epoch=0, row=row) == plain for row in range(2000))
    assert clean / 2000 == pytest.approx(0.25, abs=0.03)


def share(settings: NoiseSettings, rows: range, progress: float = 0.0) -> float:
    plain = conversation(" ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)), "no")
    after = [counted(plain, settings, seed=0, epoch=0, row=row, progress=progress) for row in rows]
    return sum(one.moved for one in after) / (100 * len(rows))


def test_ranges_are_drawn_a_row() -> None:
    settings = NoiseSettings(ratio=(0.2, 0.8))
    assert share(settings, range(300)) == pytest.approx(0.49, abs=0.03)
    assert len({round(share(settings, range(row, row + 1)), 1) for row in range(40)}) >= 5


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.0), (0.5, 0.39), (1.0, 0.79)])
def test_curriculum(progress: float, expected: float) -> None:
    settings = NoiseSettings(ratio=Curriculum(0.0, 0.8))
    assert share(settings, range(50), progress) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unit": "letters"}, "noise unit is 'letters'"),
        ({"turns": "first"}, "noise turns is 'first'"),
        ({"ratio": 1.5}, "noise ratio 1.5 is not a share"),
        ({"ratio": (0.8, 0.2)}, "from 0.8 to 0.2"),
        ({"clean_share": -0.1}, "noise clean_share -0.1 is not a share"),
        ({"ratio": Curriculum(0, 1), "per_epoch": False}, "needs a fresh permutation"),
    ],
)
def test_settings_out_of_bounds(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NoiseSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "piece", ["-", "$", "`", "(-", "\\[", "a@", "1-", "`a", "```\n", "\\begin{a}", "$a", "http://", "。"]
)
def test_long_odd_texts_take_no_time(piece: str) -> None:
    started = time.monotonic()
    units: tuple[Unit, ...] = ("auto", "sentence")
    for unit in units:
        shuffled(piece * 5000, NoiseSettings(unit=unit), ratio=0.7, seed=0)
    assert time.monotonic() - started < 5
