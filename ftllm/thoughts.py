"""Thoughts inside a model's reply: found as the text streams in, or in a whole text.

A thought stands between tags, `<think>` and `</think>` with most models. The tags arrive cut anywhere, may come
several times, may never be closed, and mean nothing inside a Markdown code fence or right after the backtick that
opens inline code. A template may open the thought itself, so that the reply begins inside it.
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
    """The strings around a thought."""

    open: str = "<think>"
    close: str = "</think>"


KNOWN_TAGS = (
    ThoughtTags(),
    ThoughtTags("<thinking>", "</thinking>"),
    ThoughtTags("<thought>", "</thought>"),
    ThoughtTags("<reasoning>", "</reasoning>"),
    ThoughtTags("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtTags("[THINK]", "[/THINK]"),  # Magistral
    ThoughtTags("◁think▷", "◁/think▷"),  # Kimi
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
        if template and tags.close in template:
            return tags
    return KNOWN_TAGS[0]


def opens_thought(prompt: str, tags: ThoughtTags) -> bool:
    """Whether a rendered prompt ends with the opening tag, so that the reply begins inside a thought."""
    return prompt.rstrip().endswith(tags.open)


def split(text: str, tags: ThoughtTags = KNOWN_TAGS[0], *, opened: bool = False) -> Parts:
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


class Splitter:
    """Turns a reply's text, cut anywhere, into pieces.

    A piece is ("think_start", ""), ("think", text), ("think_end", "") or ("text", text). Text is passed on as soon as
    it cannot be the beginning of a tag. The texts and tags in order are the input.

    Args:
        tags: the strings around a thought.
        opened: the prompt opened a thought already; the first `feed`, of an empty text too, reports it.
    """

    def __init__(self, tags: ThoughtTags = KNOWN_TAGS[0], *, opened: bool = False) -> None:
        self.tags = tags
        self.thinking = opened
        self._announce = opened
        self._held = ""
        self._line = ""  # the current line so far
        self._fence = ""  # the marker of the code fence the text is in
        self._doubtful: str | None = None  # text since a closing tag that began its line inside a fence

    def feed(self, text: str) -> list[Piece]:
        """The pieces that became certain with `text`."""
        pieces: list[Piece] = []
        if self._announce:
            self._announce = False
            pieces.append(("think_start", ""))
        buffer = self._held + text
        while buffer:
            tag = self.tags.close if self.thinking else self.tags.open
            found, newline = buffer.find(tag), buffer.find("\n")
            if found >= 0 and (newline < 0 or found < newline):
                self._pass(pieces, buffer[:found])
                buffer = buffer[found + len(tag) :]
                if self._quoted():
                    self._pass_quoted_tag(pieces, tag)
                else:
                    self._turn(pieces)
            elif newline >= 0:
                self._pass(pieces, buffer[: newline + 1])
                self._end_line()
                buffer = buffer[newline + 1 :]
            else:
                kept = _overlap(buffer, tag)
                self._pass(pieces, buffer[: len(buffer) - kept])
                buffer = buffer[len(buffer) - kept :]
                break
        self._held = buffer
        return _joined(pieces)

    def close(self) -> list[Piece]:
        """End the current thought without its tag, as the engine does when it answers now."""
        pieces = self.feed("")
        self._pass(pieces, self._held)
        self._held = ""
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
        self._pass(pieces, self._held)
        self._held = ""
        if complete and self.thinking and self._doubtful is not None:
            answer = self._doubtful
            self._turn(pieces)
            pieces.append(("text", answer))
        return _joined(pieces)

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
