"""The thought splitter: what it finds, and that cuts do not matter."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftllm.thoughts import KNOWN_TAGS, Piece, Splitter, ThoughtTags, opens_thought, split, tags_of

FENCE = "```"


@pytest.mark.parametrize(
    ("text", "thought", "answer", "closed"),
    [
        ("Hello.", "", "Hello.", True),
        ("", "", "", True),
        ("<think>\n2+2\n</think>\n\n4", "2+2", "4", True),
        ("<think></think>4", "", "4", True),
        ("Well. <think>a</think> So <think>b</think> done.", "a\n\nb", "Well.  So  done.", True),
        ("<think>never closed", "never closed", "", False),
        ("a < b and <thing> and </think> too", "", "a < b and <thing> and </think> too", True),
        ("1 <think", "", "1 <think", True),
        (f"Use\n{FENCE}\n<think>x</think>\n{FENCE}\nso.", "", f"Use\n{FENCE}\n<think>x</think>\n{FENCE}\nso.", True),
        (f"{FENCE}\n<think>\n{FENCE}\n<think>a</think>b", "a", f"{FENCE}\n<think>\n{FENCE}\nb", True),
        ("~~~\n```\n<think>\n~~~\n<think>a</think>b", "a", "~~~\n```\n<think>\n~~~\nb", True),
        (
            f"<think>\n{FENCE}\ns.split('</think>')\n{FENCE}\nyes</think>b",
            f"{FENCE}\ns.split('</think>')\n{FENCE}\nyes",
            "b",
            True,
        ),
        ("Type `<think>` to think. <think>a</think>", "a", "Type `<think>` to think.", True),
        ("<think>the answer is `5`</think>5", "the answer is `5`", "5", True),
        ("<think>a <think> b</think>c", "a <think> b", "c", True),
        ("````\n```\n<think>\n````\n<think>a</think>b", "a", "````\n```\n<think>\n````\nb", True),
        ("```one line``` <think>a</think>b", "a", "```one line``` b", True),
        # a fence left open hides the closing tag; nothing else closes the thought, so that tag did
        (f"<think>\n{FENCE}\n1+1\n</think>\nTwo.", f"{FENCE}\n1+1", "Two.", True),
        (f"<think>\n{FENCE}\n1+1\n</think>\n{FENCE}\nTwo.\n{FENCE}", f"{FENCE}\n1+1", f"{FENCE}\nTwo.\n{FENCE}", True),
        (f"<think>\n{FENCE}\n</think>\n{FENCE}\nmore</think>ok", f"{FENCE}\n</think>\n{FENCE}\nmore", "ok", True),
    ],
)
def test_whole_texts(text: str, thought: str, answer: str, closed: bool) -> None:
    assert split(text) == (thought, answer, closed)


def test_a_thought_the_template_opened() -> None:
    assert split("2+2</think>4", opened=True) == ("2+2", "4", True)
    assert split("2+2", opened=True) == ("2+2", "", False)
    splitter = Splitter(opened=True)
    assert splitter.feed("") == [("think_start", "")]
    assert splitter.feed("a</th") == [("think", "a")]
    assert splitter.feed("ink>b") == [("think_end", ""), ("text", "b")]


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    splitter = Splitter()
    assert splitter.feed("Hi <") == [("text", "Hi ")]
    assert splitter.feed("thi") == []
    assert splitter.feed("s") == [("text", "<this")]
    assert splitter.feed("<think") == []
    assert splitter.feed(">") == [("think_start", "")]
    assert splitter.thinking
    assert splitter.feed("deep </") == [("think", "deep ")]
    assert splitter.finish() == [("think", "</")]


def test_closing_without_a_tag_even_inside_a_fence() -> None:
    splitter = Splitter()
    splitter.feed(f"<think>a\n{FENCE}\ncode <")
    assert splitter.close() == [("think", "<"), ("think_end", "")]
    assert splitter.feed("answer") == [("text", "answer")]


def test_a_reply_cut_short_keeps_its_thought() -> None:
    splitter = Splitter()
    splitter.feed(f"<think>\n{FENCE}\n</think>\n{FENCE}\nand so")
    assert splitter.finish(complete=False) == []
    assert splitter.thinking


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        (None, ThoughtTags()),
        ("{{ messages }}", ThoughtTags()),
        ("{% if '</think>' in content %}", ThoughtTags()),
        ("... </thinking> ...", ThoughtTags("<thinking>", "</thinking>")),
        ("[THINK]x[/THINK]", ThoughtTags("[THINK]", "[/THINK]")),
    ],
)
def test_tags_are_found_in_the_template(template: str | None, tags: ThoughtTags) -> None:
    assert tags_of(template) == tags


def test_other_tags_split_too() -> None:
    assert split("[THINK]a[/THINK]b", ThoughtTags("[THINK]", "[/THINK]")) == ("a", "b", True)
    assert opens_thought("<|assistant|><think>\n", ThoughtTags())
    assert not opens_thought("<think></think>", ThoughtTags())


HARMONY = tags_of("<|channel|>analysis<|message|>")
GEMMA_4 = tags_of("<|channel>thought\n<channel|>")


@pytest.mark.parametrize(
    ("tags", "text", "thought", "answer"),
    [
        (GEMMA_4, "<|channel>thought\n2+2\n<channel|>4", "2+2", "4"),
        (GEMMA_4, "<|channel>thought\n<channel|>4 <|channel>", "", "4 <|channel>"),
        (
            HARMONY,
            "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>It is 4",
            "2+2",
            "It is 4",
        ),
        (HARMONY, "<|channel|>final<|message|>4", "", "4"),
        (
            HARMONY,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
            "<|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
            "<|start|>assistant<|channel|>final<|message|> So: c",
            "a\n\nb",
            "Wait. So: c",
        ),
        (
            tags_of("<|END_THINKING|>"),
            "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>",
            "a",
            "b",
        ),
    ],
)
def test_channels(tags: ThoughtTags, text: str, thought: str, answer: str) -> None:
    assert split(text, tags) == (thought, answer, True)


def test_a_control_token_is_a_tag_even_in_code() -> None:
    splitter = Splitter(HARMONY)
    splitter.feed("<|channel|>", control=True)
    splitter.feed("analysis")
    assert splitter.feed("<|message|>", control=True) == [("think_start", "")]
    assert splitter.feed(f"{FENCE}\na `<|end|>") == [("think", f"{FENCE}\na `<|end|>")]
    assert splitter.feed("<|end|>", control=True) == [("think_end", "")]
    assert splitter.feed("<|start|>", control=True) == []
    assert splitter.finish() == []  # cut before it became anything


def test_what_follows_an_empty_thought_is_the_answer() -> None:
    for tags in KNOWN_TAGS:
        assert split(f"{tags.empty}Hello.", tags) == ("", "Hello.", True)


def test_no_markup_holds_another() -> None:
    for tags in KNOWN_TAGS:
        strings = {tags.open, *tags.markup}
        assert not [a for a in strings for b in strings if a != b and a in b], tags


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
fragments = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<", "</", "think>", "`", "```", "```py\n", "~~~\n", "\n", " ", "a", "ü", "🙂", "word "]
    ),
    max_size=40,
).map("".join)


def joined(pieces: list[Piece]) -> list[Piece]:
    result: list[Piece] = []
    for kind, text in pieces:
        if result and result[-1][0] == kind and text:
            result[-1] = (kind, result[-1][1] + text)
        else:
            result.append((kind, text))
    return result


@st.composite
def replies(draw: st.DrawFn) -> tuple[ThoughtTags, str]:
    """Tags, and a text made of them, of what begins like them, and of what hides them."""
    tags = draw(st.sampled_from(KNOWN_TAGS))
    whole = [tags.open, tags.close, *tags.markup]
    cut = [text[: len(text) // 2] for text in whole] + [text[len(text) // 2 :] for text in whole]
    plain = ["`", "```", "```py\n", "~~~\n", "\n", " ", "a", "ü", "🙂", "word "]
    return tags, "".join(draw(st.lists(st.sampled_from(whole * 3 + cut + plain), max_size=40)))


@unhurried
@given(replies(), st.lists(st.integers(0, 400), max_size=30), st.booleans())
def test_cuts_do_not_matter(reply: tuple[ThoughtTags, str], cuts: list[int], opened: bool) -> None:
    tags, text = reply
    whole, pieces = Splitter(tags, opened=opened), Splitter(tags, opened=opened)
    expected = joined(whole.feed(text) + whole.finish())
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    streamed = [piece for a, b in pairwise(places) for piece in pieces.feed(text[a:b])]
    assert joined(streamed + pieces.finish()) == expected


@unhurried
@given(fragments, st.booleans())
def test_nothing_is_lost(text: str, opened: bool) -> None:
    splitter = Splitter(opened=opened)
    pieces = splitter.feed(text) + splitter.finish(complete=False)
    tags = {"think_start": "<think>", "think_end": "</think>"}
    said = "".join(tags.get(kind, piece) for kind, piece in pieces)
    assert said == ("<think>" if opened else "") + text


@unhurried
@given(st.text(alphabet="ab \n", max_size=30), st.text(alphabet="cd \n", max_size=30))
def test_a_plain_thought_and_answer_come_back(thought: str, answer: str) -> None:
    assert split(f"<think>{thought}</think>{answer}") == (thought.strip(), answer.strip(), True)
