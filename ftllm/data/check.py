"""What a data set holds, and what is wrong with it, row by row: `ftllm data check`.

Files are read as a stream: of a row there stays its length, and 16 bytes that tell it from others.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal

from ftllm import thoughts
from ftllm.conversations import Conversation, Role
from ftllm.data.shapes import respelling
from ftllm.data.sources import DataFile, FileFacts, find, read_conversations, source_of
from ftllm.errors import UserError
from ftllm.render import Row, render
from ftllm.vocabulary import Vocabulary

Severity = Literal["error", "warning"]
# What may be wrong with a row. Training stops at an error (or leaves the row out, with `bad_rows: drop`).
KINDS: dict[str, Severity] = {
    "not a conversation": "error",
    "unclosed thought": "error",
    "no answer": "error",
    "refused": "error",
    "role order": "warning",
    "empty turn": "warning",
    "too long": "warning",
    "duplicate": "warning",
}


@dataclass(frozen=True)
class Problem:
    """Something wrong with a row.

    Attributes:
        kind: one of `KINDS`.
        source: where the row is (`file.jsonl:12`).
        message: what is wrong, without the place.
    """

    kind: str
    source: str
    message: str

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind]


@dataclass(frozen=True)
class Lengths:
    """Lengths of rows.

    Attributes:
        unit: `tokens` of the model, or `words` where none was given.
        sorted: every row's length, ascending.
        longest_at: where the longest is.
    """

    unit: str
    sorted: array[int]
    longest_at: str

    def quantile(self, share: float) -> int:
        """The length that this share of the rows does not exceed (the nearest rank); 0 without rows."""
        return self.sorted[max(0, math.ceil(share * len(self.sorted)) - 1)] if self.sorted else 0

    def histogram(self) -> list[tuple[int, int, int]]:
        """(from, to, rows) of each range between two powers of two, both ends included, from the shortest row's on."""
        if not self.sorted:
            return []
        edges = [0, *accumulate([1] * 40, lambda edge, _: 2 * edge)]
        ranges = ((low + 1 if low else 0, high) for low, high in pairwise(edges))
        counted = [
            (low, high, bisect_left(self.sorted, high + 1) - bisect_left(self.sorted, low)) for low, high in ranges
        ]
        full = [i for i, (_, _, rows) in enumerate(counted) if rows]
        return counted[full[0] : full[-1] + 1]


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        files: path, format, conversations, spellings of thoughts and ignored columns of each.
        turns: how many of each role.
        thinking: how many of the assistant's turns hold a thought.
        lengths: of the rows that training would make of the conversations; in words, of the conversations.
        trained: how many of the tokens bear loss; None without a model.
        problems: in the data's order.
        notes: what a person should know besides.
    """

    files: tuple[dict[str, Any], ...]
    turns: Counter[Role]
    thinking: int
    lengths: Lengths
    trained: int | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def conversations(self) -> int:
        return sum(file["conversations"] for file in self.files)

    @property
    def errors(self) -> list[Problem]:
        """The problems that training would stop at."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def as_json(self) -> dict[str, Any]:
        """For a program to read."""
        lengths = self.lengths
        return {
            "ok": not self.errors,
            "files": list(self.files),
            "conversations": self.conversations,
            "turns": dict(self.turns),
            "thinking": self.thinking,
            "lengths": {
                "unit": lengths.unit,
                "rows": len(lengths.sorted),
                "total": sum(lengths.sorted),
                "median": lengths.quantile(0.5),
                "p95": lengths.quantile(0.95),
                "longest": lengths.quantile(1),
                "longest_at": lengths.longest_at,
                "histogram": [{"from": low, "to": high, "rows": rows} for low, high, rows in lengths.histogram()],
            },
            "trained_tokens": self.trained,
            "counts": {kind: found for kind in KINDS if (found := sum(p.kind == kind for p in self.problems))},
            "problems": [
                {"severity": p.severity, "kind": p.kind, "source": p.source, "message": p.message}
                for p in self.problems
            ],
            "notes": list(self.notes),
        }


@dataclass
class _Checking:
    """What gathers while files are read."""

    vocabulary: Vocabulary | None
    max_length: int
    problems: list[Problem] = field(default_factory=list)
    seen: dict[bytes, str] = field(default_factory=dict)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    longest: tuple[int, str] = (0, "")
    turns: Counter[Role] = field(default_factory=Counter)
    thinking: int = 0
    trained: int = 0

    def fault(self, error: UserError) -> None:
        """Note a row that is no conversation."""
        source, _, message = error.message.partition(": ")
        self.problems.append(Problem("not a conversation", source, message))

    def take(self, conversation: Conversation) -> None:
        """Look at one conversation."""
        source = conversation.source
        found = list(complaints(conversation))
        self.problems += (Problem(kind, source, message) for kind, message in found)
        for message in conversation.messages:
            self.turns[message.role] += 1
            self.thinking += message.role == "assistant" and bool(thoughts.split(message.content).thought)
        first = self.seen.setdefault(_digest(conversation), source)
        if first is not source:
            self.problems.append(Problem("duplicate", source, f"the same as {first}"))
        if self.vocabulary is None:
            self._measure(sum(len(message.content.split()) for message in conversation.messages), source)
            return
        try:
            rows = render(conversation, self.vocabulary)
        except UserError as error:
            # What is known already is not said again in the renderer's words.
            if not any(KINDS[kind] == "error" for kind, _ in found):
                self.problems.append(Problem("refused", source, error.message.removeprefix(f"{source}: ")))
            return
        for row in rows:
            self._take_row(row)

    def _take_row(self, row: Row) -> None:
        tokens = len(row.input_ids)
        self._measure(tokens, row.source)
        self.trained += row.trained
        if tokens > self.max_length:
            message = f"{tokens} tokens, beyond max_length {self.max_length}"
            self.problems.append(Problem("too long", row.source, message))

    def _measure(self, length: int, source: str) -> None:
        self.lengths.append(length)
        if length > self.longest[0]:
            self.longest = (length, source)


def check(
    places: Sequence[str],
    *,
    vocabulary: Vocabulary | None = None,
    max_length: int = 4096,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> Checked:
    """Look at every row of some data.

    Args:
        places: as `--data` names them.
        vocabulary: of the model it is meant for: tokens are counted, and rows that cannot be trained on it named.
        max_length: longest row in tokens.
        offline: never touch the network.
        say: told what is fetched.
        advance: called with the number of rows read so far, good and bad.

    Raises:
        UserError: a file is missing or unreadable as a whole.
        WorkError: a download failed.
    """
    checking = _Checking(vocabulary, max_length)
    files: list[dict[str, Any]] = []
    notes: list[str] = []
    spellings: Counter[str] = Counter()
    done = 0
    for place in places:
        found = find(source_of(place), offline=offline, say=say)
        if found.left_out:
            notes.append(f"{place}: the split {found.split} is read; not of it: {', '.join(found.left_out)}")
        for file in found.files:
            facts, before = FileFacts(), len(checking.problems)
            for conversation in read_conversations(file, facts, checking.fault):
                checking.take(conversation)
                done += 1
                advance(done)
            unreadable = sum(p.kind == "not a conversation" for p in checking.problems[before:])
            files.append(_record(file, facts, unreadable))
            spellings.update(facts.spellings)
    if vocabulary is not None and (note := respelling(spellings, vocabulary.chat_template)):
        notes.append(note)
    unit = "words" if vocabulary is None else "tokens"
    return Checked(
        tuple(files),
        checking.turns,
        checking.thinking,
        Lengths(unit, array("q", sorted(checking.lengths)), checking.longest[1]),
        None if vocabulary is None else checking.trained,
        tuple(checking.problems),
        tuple(notes),
    )


def complaints(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """(kind, message) of each thing wrong with the turns themselves, whatever the model."""
    messages = conversation.messages
    for number, message in enumerate(messages, 1):
        if not message.content.strip():
            yield "empty turn", f"message {number} ({message.role}) is empty"
        elif message.role == "assistant":
            parts = thoughts.split(message.content)
            if not parts.closed:
                yield "unclosed thought", f"message {number}: a thought is opened and never closed"
            elif not parts.answer:
                yield "empty turn", f"message {number} is a thought without an answer"
    if not any(message.role == "assistant" for message in messages):
        yield "no answer", "no assistant turn, so there is nothing to train"
        return
    yield from (("role order", message) for message in _order(conversation))


def _order(conversation: Conversation) -> Iterator[str]:
    """What is odd about who speaks when."""
    roles = [message.role for message in conversation.messages]
    for number, role in enumerate(roles[1:], 2):
        if role == "system":
            yield f"message {number} is a system turn; its place is before all others"
    spoken = [(number, role) for number, role in enumerate(roles, 1) if role != "system"]
    if spoken[0][1] == "assistant":
        yield f"message {spoken[0][0]}: the assistant speaks first"
    for (earlier, role), (later, other) in pairwise(spoken):
        if role == other:
            yield f"messages {earlier} and {later} are both the {role}'s"
    if spoken[-1][1] == "user":
        yield f"message {spoken[-1][0]}, the last, is the user's, and nothing answers it"


def _digest(conversation: Conversation) -> bytes:
    text = repr([(message.role, message.content) for message in conversation.messages])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _record(file: DataFile, facts: FileFacts, unreadable: int) -> dict[str, Any]:
    return {
        "path": file.label,
        "format": facts.format,
        "conversations": facts.rows,
        "unreadable": unreadable,
        "thoughts": dict(sorted(facts.spellings.items())),
        "ignored": dict(sorted(facts.ignored.items())),
    }
