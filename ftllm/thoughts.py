"""Thoughts inside a model's reply: found as the text streams in, or in a whole text.

A thought stands between tags, `<think>` and `</think>` with most models. The tags arrive cut anywhere, may come
several times, may never be closed, and mean nothing inside a Markdown code fence or right after the backtick that
opens inline code. A template may open the thought itself, so that the reply begins inside it.

Some models write in channels: the thought is one message, the answer the next, and what opens and ends a message is
markup around the answer (https://cookbook.openai.com/articles/openai-harmony for gpt-oss). It is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

PieceKind = Literal["think_start", "think", "think_end", "text"]
Piece = tuple[PieceKind, str]

FENCE = re.compile(r"\s*(?:(`{3,})[^`]*|(~{3,}).*)", re.DOTALL)


@dataclass(frozen=True)
class ThoughtTags:
    """The strings around a thought, and around the answer where a model marks that too.

    Attributes:
        open: what begins a thought.
        close: what ends it.
        answer: what opens the answer after a thought.
        markup: what stands around an answer and is no part of it; none of these holds another.
        sign: what a chat template holds that speaks this format; empty for `close`.
    """

    open: str = "<think>"
    close: str = "</think>"
    answer: str = ""
    markup: tuple[str, ...] = ()
    sign: str = ""

    @property
    def strings(self) -> tuple[str, ...]:
        """All of them."""
        return (self.open, self.close, self.answer, *self.markup)

    @property
    def empty(self) -> str:
        """An empty thought and what follows it: the beginning of a reply that does not think."""
        blank = "" if self.answer else "\n\n"
        return f"{self.open}{blank}{self.close}{blank}{self.answer}"


# The most particular first: a template may speak of `</think>` beside its own tags.
KNOWN_TAGS = (
    ThoughtTags("<|channel>thought\n", "<channel|>"),  # Gemma 4
    ThoughtTags(  # gpt-oss
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|start|>assistant<|channel|>final<|message|>",
        ("<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>", "<|end|>"),
        sign="<|channel|>analysis<|message|>",
    ),
    ThoughtTags(  # Solar Open
        "<|think|>",
        "<|end|>",
        "<|begin|>assistant<|content|>",
        ("<|begin|>assistant", "<|content|>", "<|end|>"),
        sign="assistant<|think|>",
    ),
    ThoughtTags(  # Kimi K3
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        "<|open|>response<|sep|>",
        ("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
        sign="open_tag('think'",
    ),
    ThoughtTags(  # Muse
        " to=self<|message|>",
        "<|eom|>",
        "<|start|>assistant to=user<|message|>",
        ("<|start|>assistant", " to=user<|message|>", "<|eom|>"),
        sign=" to=self<|message|>",
    ),
    ThoughtTags(  # Command
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        markup=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    ThoughtTags("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThoughtTags("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ThoughtTags("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]", markup=("[END FINAL RESPONSE]",)),  # Apriel
    ThoughtTags("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtTags("<mm:think>", "</mm:think>"),  # MiniMax M3
    ThoughtTags("<think:opensource>", "</think:opensource>", sign="</think{}>"),  # Hunyuan 3
    ThoughtTags("◁think▷", "◁/think▷"),  # Kimi VL
    ThoughtTags(),
    ThoughtTags("<thinking>", "</thinking>"),
    ThoughtTags("<thought>", "</thought>"),
    ThoughtTags("<reasoning>", "</reasoning>"),
)


class Parts(NamedTuple):
    """A reply in two: all its thoughts (a blank line between them) and the answer, both stripped.

    `closed` is False when a thought was opened and never ended; a reply without thoughts is closed.
    """

    thought: str
    answer: str
    closed: bool


def tags_of(template: str | None) -> ThoughtTags:
    """The thought tags a chat template speaks of; `<think>` when it speaks of none."""
    for tags in KNOWN_TAGS:
        if template and (tags.sign or tags.close) in template:
            return tags
    return ThoughtTags()


def opens_thought(prompt: str, tags: ThoughtTags) -> bool:
    """Whether a rendered prompt ends with the opening tag, so that the reply begins inside a thought."""
    return prompt.rstrip().endswith(tags.open.rstrip())


def split(text: str, tags: ThoughtTags = ThoughtTags(), *, opened: bool = False) -> Parts:
    """Split a whole reply; `opened` when the prompt opened the thought. Equal to streaming it in any cuts."""
    splitter = Splitter(tags, opened=opened)
    pieces = splitter.feed(text)
    was_open = splitter.thinking
    pieces += splitter.finish()
    thoughts = [""]
    answer = ""
    for kind, piece in pieces:
        if kind == "think_start":
            thoughts.append("")
        elif kind == "think":
            thoughts[-1] += piece
        elif kind == "text":
            answer += piece
    if was_open and not splitter.thinking:  # `finish` found the end: what it gave as the answer leaves the thought
        thoughts[-1] = thoughts[-1].removesuffix(tags.close + pieces[-1][1])
    return Parts("\n\n".join(filter(None, map(str.strip, thoughts))), answer.strip(), not splitter.thinking)


def retagged(text: str, old: ThoughtTags, new: ThoughtTags, *, opened: bool = False) -> str:
    """`text` with its thoughts between other tags; tags that are code stay as they are.

    Args:
        text: a whole reply.
        old: the tags it has.
        new: the tags it gets.
        opened: it begins inside a thought, and gets the opening tag too.
    """
    splitter = Splitter(old, opened=opened)
    # With some, the line's end is part of the opening tag.
    line = "\n" if old.open.endswith("\n") and not new.open.endswith("\n") else ""
    parts: list[str] = []
    for kind, piece in splitter.feed(text) + splitter.finish(complete=False):
        if kind == "think" and parts and parts[-1] == new.open and new.open.endswith("\n"):
            piece = piece.removeprefix("\n")
        parts.append(new.open + line if kind == "think_start" else new.close if kind == "think_end" else piece)
    return "".join(parts)


class Splitter:
    """Turns a reply's text, cut anywhere, into pieces.

    A piece is ("think_start", ""), ("think", text), ("think_end", "") or ("text", text). Text is passed on as soon as
    it cannot be the beginning of a tag. The texts and tags in order are the input, less what is markup.

    Args:
        tags: the strings around a thought.
        opened: the prompt opened a thought already; the first `feed`, of an empty text too, reports it.
    """

    def __init__(self, tags: ThoughtTags = ThoughtTags(), *, opened: bool = False) -> None:
        self.tags = tags
        self.thinking = opened
        self._announce = opened
        self._held = ""
        self._certain = False  # some of what is held is a control token's text
        self._line = ""  # the current line so far
        self._fence = ""  # the marker of the code fence the text is in
        self._doubtful: str | None = None  # text since a closing tag that began its line inside a fence

    def feed(self, text: str, *, control: bool = False) -> list[Piece]:
        """The pieces that became certain with `text`.

        Args:
            control: `text` is a control token's: what it is part of is a tag even inside code.
        """
        pieces: list[Piece] = []
        if self._announce:
            self._announce = False
            pieces.append(("think_start", ""))
        buffer = self._held + text
        self._certain |= control
        while buffer:
            found, tag = self._next_tag(buffer)
            newline = buffer.find("\n")
            if tag and (newline < 0 or found < newline):
                self._pass(pieces, buffer[:found])
                buffer = buffer[found + len(tag) :]
                if not self._certain and self._quoted():
                    self._pass_quoted_tag(pieces, tag)
                elif not self.thinking and tag != self.tags.open:
                    self._line = self._fence = ""  # markup: a message ends, or the next begins
                else:
                    self._turn(pieces)
            elif newline >= 0:
                self._pass(pieces, buffer[: newline + 1])
                self._end_line()
                buffer = buffer[newline + 1 :]
            else:
                kept = max(_overlap(buffer, tag) for tag in self._awaited())
                self._pass(pieces, buffer[: len(buffer) - kept])
                buffer = buffer[len(buffer) - kept :]
                break
        self._held = buffer
        self._certain &= bool(buffer)
        return _joined(pieces)

    def _awaited(self) -> tuple[str, ...]:
        """The tags that mean something now."""
        return (self.tags.close,) if self.thinking else (self.tags.open, *self.tags.markup)

    def _next_tag(self, buffer: str) -> tuple[int, str]:
        """Where the first tag in `buffer` begins, and which it is; an empty one where there is none."""
        found = [(buffer.find(tag), tag) for tag in self._awaited()]
        return min(((place, tag) for place, tag in found if place >= 0), default=(-1, ""))

    def close(self) -> list[Piece]:
        """End the current thought without its tag, as the engine does when it answers now."""
        pieces = self.feed("")
        self._pass_held(pieces)
        if self.thinking:
            self._turn(pieces)
        return _joined(pieces)

    def finish(self, *, complete: bool = True) -> list[Piece]:
        """The last pieces. `thinking` is still True when the thought was never closed.

        A model may leave a code fence open in its thought, which hides the closing tag. When a `complete` reply ends
        so, the first hidden tag that began its line was the end, and the text since then is given (again) as the
        answer: nothing a person waits for is lost in a thought.
        """
        pieces = self.feed("")
        self._pass_held(pieces)
        if complete and self.thinking and self._doubtful is not None:
            answer = self._doubtful
            self._turn(pieces)
            pieces.append(("text", answer))
        return _joined(pieces)

    def _pass_held(self, pieces: list[Piece]) -> None:
        """Pass on what could have become a tag; the beginning of markup is no text."""
        if not self._certain:
            self._pass(pieces, self._held)
        self._held, self._certain = "", False

    def _pass(self, pieces: list[Piece], text: str) -> None:
        if not text:
            return
        pieces.append(("think" if self.thinking else "text", text))
        self._line += text
        if self._doubtful is not None:
            self._doubtful += text

    def _turn(self, pieces: list[Piece]) -> None:
        """Go from text to thought or back; both begin on a line of their own, outside any fence."""
        pieces.append(("think_end" if self.thinking else "think_start", ""))
        self.thinking = not self.thinking
        self._line = self._fence = ""
        self._doubtful = None

    def _quoted(self) -> bool:
        """Whether a tag at the end of the current line is code: in a fence, or behind an inline code's backtick."""
        if self._fence or FENCE.fullmatch(self._line):
            return True
        return self._line.endswith("`") and self._line.count("`") % 2 == 1

    def _pass_quoted_tag(self, pieces: list[Piece], tag: str) -> None:
        doubtful = self.thinking and bool(self._fence) and not self._line.strip() and self._doubtful is None
        self._pass(pieces, tag)
        if doubtful:
            self._doubtful = ""

    def _end_line(self) -> None:
        """Follow code fences, by CommonMark's rule but with any indentation, for fences stand in lists too."""
        line, self._line = self._line.rstrip(), ""
        match = FENCE.fullmatch(line)
        if match is None:
            return
        marker = match[1] or match[2]
        if not self._fence:
            self._fence = marker
        elif marker.startswith(self._fence) and line.strip() == marker:
            self._fence = ""


def _overlap(text: str, tag: str) -> int:
    """Length of the longest proper prefix of `tag` that `text` ends with."""
    if tag[0] not in text:
        return 0
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring texts of one kind made one."""
    joined: list[Piece] = []
    for kind, text in pieces:
        if joined and joined[-1][0] == kind and kind in ("think", "text"):
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined
