"""Drafts of what a reply says next, looked up in what was said before.

Where a text is said again (code that is rewritten, a quotation), what followed the last few tokens before is likely to
follow them again, and several tokens evaluated in one batch cost less than one after the other. Every token is still
drawn from its own logits: a draft is only ever confirmed or dropped
(https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 3  # tokens that must agree for what followed them to be drafted
LEAST, MOST = 2, 8  # tokens in a draft; more are tried after all of one were right
REST, LONGEST_REST = 32, 1024  # tokens without a draft after one that was all wrong; twice as many after each more


class Lookup:
    """The tokens so far, and where each `GRAM` of them stood last."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._length, self._rest, self._wait = LEAST, REST, 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Take one more token."""
        if len(self._tokens) >= GRAM:
            self._ends[tuple(self._tokens[-GRAM:])] = len(self._tokens)
        self._tokens.append(token)
        self._wait = max(self._wait - 1, 0)

    def draft(self) -> list[int]:
        """What may follow; often nothing."""
        end = None if self._wait else self._ends.get(tuple(self._tokens[-GRAM:]))
        return [] if end is None else self._tokens[end : end + self._length]

    def told(self, right: int, drafted: int) -> None:
        """So many of a draft were right: the next is longer, shorter, or not made for a while."""
        if not right:
            self._length, self._wait = LEAST, self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
        else:
            self._length = min(2 * self._length, MOST) if right == drafted else max(right, LEAST)
            self._rest = REST
