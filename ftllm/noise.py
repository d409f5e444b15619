"""Fragmented Training's burden: user turns with a part of their words shuffled.

Pure functions. Randomness is a function of (seed, epoch, row, turn), never a shared stream, so that resumed runs,
data workers and several processes see the same text.

Method: the model card of aifeifei798/gemma-3-27b-it-FT-reasoning (DOI 10.57967/hf/7592).
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from ftllm.conversations import Conversation
from ftllm.errors import UserError

Unit = Literal["card", "word", "token", "sentence", "auto"]
Turns = Literal["all", "last"]
Span = tuple[int, int]  # where a part of a text begins and ends, in characters
# The tokens of a text, in order; `DirectoryVocabulary.spans` is one.
Cut = Callable[[str], Sequence[Span]]


def burden(text: str | None, *, ratio: float = 0.7, rng: random.Random) -> str:
    """The card's function: `int(n * ratio)` of the n pieces between single spaces change places among themselves.

    A chosen piece may land where it was: on average `(int(n * ratio) - 1) / n` of the pieces move. Texts of three
    pieces or fewer stay as they are; None becomes the empty text.

    Args:
        text: a user turn.
        ratio: share of pieces chosen, 0 to 1.
        rng: drawn from as the card draws: one `sample`, one `shuffle`.
    """
    return " ".join(_shuffled((text or "").split(" "), ratio, rng))


def _shuffled(pieces: Sequence[str], ratio: float, rng: random.Random) -> list[str]:
    result = list(pieces)
    if len(pieces) > 3:
        chosen = rng.sample(range(len(pieces)), int(len(pieces) * ratio))
        moved = [pieces[i] for i in chosen]
        rng.shuffle(moved)
        for place, piece in zip(chosen, moved, strict=True):
            result[place] = piece
    return result


@dataclass(frozen=True)
class Curriculum:
    """A ratio that goes evenly from `start` to `end` over training."""

    start: float
    end: float


@dataclass(frozen=True)
class NoiseSettings:
    """What is shuffled, and how much.

    Attributes:
        unit: `card`: pieces between single spaces, as the card cuts them; `word`: what stands between white space,
            which stays in place, line breaks included; `token`: the model's own tokens, less white space, which stays
            in place too; `sentence`; `auto`: words, and the characters of scripts written without spaces (Chinese,
            Japanese, Thai...), which `word` never shuffles.
        ratio: share of units chosen, 0 to 1: a number, a (low, high) range drawn for each row, or a `Curriculum`.
        protect: keep fenced and inline code, URLs, LaTeX and numbers with their operators whole and in place.
        per_epoch: a fresh permutation every epoch; else one for the whole training.
        turns: which user turns, `all` or the `last`.
        clean_share: share of rows left alone, 0 to 1.

    Raises:
        UserError: a value is out of bounds.
    """

    unit: Unit = "auto"
    ratio: float | tuple[float, float] | Curriculum = 0.7
    protect: bool = True
    per_epoch: bool = True
    turns: Turns = "all"
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("unit", self.unit, get_args(Unit)), ("turns", self.turns, get_args(Turns))):
            if value not in known:
                raise UserError(f"noise {name} is {value!r}", f"it is one of {', '.join(known)}")
        low, high = self.bounds
        for name, share in (("ratio", low), ("ratio", high), ("clean_share", self.clean_share)):
            if not 0 <= share <= 1:
                raise UserError(f"noise {name} {share} is not a share", "give a number from 0 to 1")
        if isinstance(self.ratio, Curriculum):
            if not self.per_epoch:
                raise UserError("a noise curriculum needs a fresh permutation every epoch", "set per_epoch to true")
        elif low > high:
            raise UserError(f"the noise ratio's range goes from {low} to {high}", "give the lower bound first")

    @property
    def bounds(self) -> tuple[float, float]:
        """The ratio's two ends; equal when it is a number."""
        if isinstance(self.ratio, Curriculum):
            return self.ratio.start, self.ratio.end
        return self.ratio if isinstance(self.ratio, tuple) else (self.ratio, self.ratio)


def generator(seed: int, epoch: int, row: int, turn: int) -> random.Random:
    """The random numbers of one turn: a function of its four coordinates alone.

    Args:
        seed: the run's seed.
        epoch: from 0; always 0 for static noise.
        row: the conversation's index in the data.
        turn: the message's index in the conversation; -1 for what is drawn once a row.
    """
    digest = hashlib.sha256(f"ftllm noise {seed} {epoch} {row} {turn}".encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


class Noised(NamedTuple):
    """A conversation with noise.

    Attributes:
        conversation: as it is trained.
        spans: of each message, the places that hold another unit than before.
        units: how many units all user turns have, protected ones included.
    """

    conversation: Conversation
    spans: tuple[tuple[Span, ...], ...]
    units: int

    @property
    def moved(self) -> int:
        """How many places hold another unit than before."""
        return sum(map(len, self.spans))


class Shuffled(NamedTuple):
    """A text with noise: `spans` are the places that hold another unit than before, `units` how many there are."""

    text: str
    spans: tuple[Span, ...]
    units: int


def noised(
    conversation: Conversation,
    settings: NoiseSettings,
    *,
    seed: int,
    epoch: int,
    row: int,
    progress: float = 0.0,
    cut: Cut | None = None,
) -> Noised:
    """The conversation as it is trained in `epoch`: user turns burdened, all else untouched.

    Args:
        conversation: the row as it is in the data.
        settings: what is shuffled.
        seed: the run's seed.
        epoch: from 0.
        row: the conversation's index in the data.
        progress: share of training done, 0 to 1; only a `Curriculum` reads it.
        cut: the tokens of a text; only the unit `token` asks for them.
    """
    epoch = epoch if settings.per_epoch else 0
    drawn = generator(seed, epoch, row, -1)
    turns = [i for i, message in enumerate(conversation.messages) if message.role == "user"]
    chosen = turns if settings.turns == "all" else turns[-1:]
    if drawn.random() < settings.clean_share:
        chosen = []
    low, high = settings.bounds
    if isinstance(settings.ratio, tuple):
        ratio = drawn.uniform(low, high)
    else:
        ratio = low + (high - low) * min(max(progress, 0.0), 1.0)
    messages = list(conversation.messages)
    spans: list[tuple[Span, ...]] = [()] * len(messages)
    units = 0
    for turn in turns:
        content = messages[turn].content
        if turn not in chosen:
            units += sum(1 for _ in _slots(content, settings.unit, cut))
            continue
        after = shuffle(content, settings, ratio=ratio, rng=generator(seed, epoch, row, turn), cut=cut)
        messages[turn] = replace(messages[turn], content=after.text)
        spans[turn] = after.spans
        units += after.units
    return Noised(replace(conversation, messages=tuple(messages)), tuple(spans), units)


def shuffle(
    text: str, settings: NoiseSettings, *, ratio: float, rng: random.Random, cut: Cut | None = None
) -> Shuffled:
    """One text with its units shuffled; with unit `card` and nothing protected, exactly `burden`.

    Units of one kind change places among themselves (words with words, sentences with sentences, characters of
    unspaced scripts with such characters), so that the text falls into as many units after as before. Tokens are the
    exception: put side by side otherwise, they may become others.
    """
    spans = [match.span() for match in PROTECTED.finditer(text)] if settings.protect else []
    masked = _masked(text, spans)
    whole = list(_slots(text, settings.unit, cut))
    # A span that is kept may hold spaces and full stops, which cut nothing; tokens are those of the text as it is.
    slots = whole if not spans or settings.unit == "token" else _slots(masked, settings.unit, None)
    movable: dict[str, list[_Slot]] = {}
    for slot in slots:
        if MASK not in masked[slot.start : slot.end]:
            movable.setdefault(slot.kind, []).append(slot)
    moves = [
        (slot, piece)
        for slots in movable.values()
        for slot, piece in zip(slots, _shuffled([text[s.start : s.end] for s in slots], ratio, rng), strict=True)
    ]
    parts, position, written = [], 0, 0
    moved: list[Span] = []
    for slot, piece in sorted(moves):
        parts += [text[position : slot.start], piece]
        written += slot.start - position + len(piece)
        position = slot.end
        if piece != text[slot.start : slot.end]:
            moved.append((written - len(piece), written))
    return Shuffled("".join([*parts, text[position:]]), tuple(moved), len(whole))


class _Slot(NamedTuple):
    """A unit's place in a text; units of one `kind` may change places."""

    start: int
    end: int
    kind: str


def _masked(text: str, spans: Sequence[Span]) -> str:
    """`text`, as long as before, with every character inside `spans` made `MASK`, and no other one."""
    parts, position = [], 0
    for start, end in spans:
        parts += [text[position:start].replace(MASK, "x"), MASK * (end - start)]
        position = end
    return "".join([*parts, text[position:].replace(MASK, "x")])


def _slots(text: str, unit: Unit, cut: Cut | None) -> Iterator[_Slot]:
    if unit == "token":
        yield from _token_slots(text, cut)
    elif unit == "card":
        start = 0
        for piece in text.split(" "):
            yield _Slot(start, start + len(piece), "piece")
            start += len(piece) + 1
    elif unit == "sentence":
        for sentence in SENTENCE.finditer(text):
            yield _Slot(*sentence.span(), sentence.lastgroup or "open")
    else:
        for word in WORD.finditer(text):
            if unit == "auto" and UNSPACED.search(word[0]):
                for character in UNSPACED.finditer(text, *word.span()):
                    yield _Slot(*character.span(), "character")
            else:
                yield _Slot(*word.span(), "word")


def _token_slots(text: str, cut: Cut | None) -> Iterator[_Slot]:
    """Each token of `text` without the white space around it; those that share a character are one unit."""
    if cut is None:
        raise ValueError("shuffling tokens needs a tokenizer's cut")
    joined: list[Span] = []
    for start, end in cut(text):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif start < end:
            joined.append((start, end))
    for start, end in joined:
        # A token may hold white space inside: two words, or a line's end and what follows.
        for word in WORD.finditer(text, start, end):
            yield _Slot(*word.span(), "token")


# Stands for each protected character while a text is cut: private use, so neither space, letter nor full stop.
MASK = "\ue000"
WORD = re.compile(r"\S+")
# A sentence ends with its mark or its line. What an end needs after it differs, so the kinds do not mix: a mark and
# white space, an East Asian mark and nothing, or the end of the line (headlines, list entries).
SENTENCE = re.compile(
    r"""\S[^\n]*?(?:(?P<spaced>[.!?…]+["'”’)\]]*(?=\s|\Z))|(?P<wide>[。！？｡]+[」』”’）]*)|(?=[^\S\n]*(?:\n|\Z)))"""
)
# A character of a script written without spaces, with what cannot stand without it: marks, long-vowel signs, small
# kana, and in Khmer and Burmese the consonant stacked below. Thai and Lao write some vowels before their consonant.
_HAN = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fd-\u30ff\uff66-\uff6f\uff71-\uff9d"
_SOUTHEAST = r"\u0e01-\u0e2f\u0e46\u0e81-\u0eae\u0edc-\u0edf\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3"
_MARKS = "".join(
    chr(c) for c in (*range(0x0E30, 0x1100), *range(0x17B4, 0x17DE)) if unicodedata.category(chr(c))[0] == "M"
)
_SMALL = "\u30fc\uff70\u3099\u309aぁぃぅぇぉゃゅょゎァィゥェォャュョヮ\ufe00-\ufe0f\U000e0100-\U000e01ef"
UNSPACED = re.compile(
    rf"[\u0e40-\u0e44\u0ec0-\u0ec4]?[{_HAN}{_KANA}{_SOUTHEAST}]"
    rf"(?:[\u1039\u17d2][\u1000-\u102a\u1780-\u17b3]|[{_MARKS}{_SMALL}\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3])*"
)

_OPERATOR = r"[-+*/^=<>×÷±≤≥≠≈−·]"
_NUMBER = r"[-+−(]*+\d+(?:[.,:/]\d+)*+%?\)*+"
_BRACKETS = r"\([^\s()<>\"]*\)"
PROTECTED = re.compile(
    rf"""
      ^[ \t]*(?P<fence>```+|~~~+)[^\n]*(?:\n(?![ \t]*(?P=fence))[^\n]*)*+(?:\n[^\n]*|\Z)  # fenced code, or to the end
    | (?<!`)(?P<ticks>`+)(?!`)(?:[^\n]|\n(?!\s*\n)){{1,2000}}?(?<!`)(?P=ticks)(?!`)  # inline code
    | (?:(?:https?|ftp|file)://|www\.|mailto:)
      (?:{_BRACKETS}|(?!{_BRACKETS})[^\s<>"\u3000-\u9fff\uff00-\uffef])*
      (?:{_BRACKETS}|(?!{_BRACKETS})[^\s<>"\u3000-\u9fff\uff00-\uffef.,;:!?)])  # addresses on the web
    | (?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+  # mail addresses
    | (?<!\$)\$\$(?!\$).{{1,2000}}?\$\$ | \\\[.{{1,2000}}?\\\] | \\\(.{{1,2000}}?\\\)  # LaTeX, in its brackets
    | \\begin\{{(?P<environment>[a-zA-Z*]+)\}}.{{1,2000}}?\\end\{{(?P=environment)\}}
    | (?<![\\$\w])\$(?![\s$])(?:[^$\n]*[^$\s\\])?\$(?![\d$])  # not the dollars of "$5 and $6"
    | \\[a-zA-Z]++(?:\{{[^{{}}\n]*\}})*  # a LaTeX command by itself
    | (?<![-+*/^=<>×÷±≤≥≠≈−·(])(?:{_OPERATOR}++[ \t]?)?+{_NUMBER}
      (?:[ \t]?{_OPERATOR}++[ \t]?{_NUMBER})*(?:[ \t]?{_OPERATOR}++)?  # numbers, with the operators about them
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
