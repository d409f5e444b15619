"""One reply to a graded prompt, taken apart: its thought, its answer, and what is counted of each."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from ftllm import thoughts
from ftllm.evals.grading import is_right
from ftllm.evals.tasks import Prompt
from ftllm.loops import repeated_cycle
from ftllm.thoughts import Splitter, ThoughtTags


@dataclass(frozen=True)
class Outcome:
    """What became of one prompt.

    Attributes:
        right: the answer, its thought taken off, is right by the prompt's rule.
        thinks: there is a thought with anything in it.
        unclosed: a thought was opened and never closed (the reply then has no answer).
        looping: the thought repeats a cycle; see `repeated_cycle`.
        cut: the reply ended at the limit of tokens, not by itself.
        thought_tokens: tokens of thoughts and their tags.
        answer_tokens: all other tokens, without the end of the turn.
    """

    prompt: Prompt
    thought: str
    answer: str
    right: bool
    thinks: bool
    unclosed: bool
    looping: bool
    cut: bool
    thought_tokens: int
    answer_tokens: int


def outcome(
    prompt: Prompt,
    tokens: Sequence[int],
    pieces: Sequence[bytes],
    *,
    cut: bool,
    tags: ThoughtTags,
    opened: bool = False,
) -> Outcome:
    """Grade and count one reply.

    Args:
        prompt: what was asked.
        tokens: the reply's token ids, without the end-of-turn token.
        pieces: the bytes each of them stands for.
        cut: the reply ended at the limit of tokens.
        tags: the model's thought tags.
        opened: the prompt's own text opened the thought.
    """
    thought, answer, closed = thoughts.split(b"".join(pieces).decode("utf-8", "replace"), tags, opened=opened)
    inside = thinking(pieces, tags, opened=opened)
    thought_ids = [token for token, is_thought in zip(tokens, inside, strict=True) if is_thought]
    return Outcome(
        prompt=prompt,
        thought=thought,
        answer=answer,
        right=is_right(answer, prompt.answer, prompt.grade),
        thinks=bool(thought),
        unclosed=not closed,
        looping=repeated_cycle(thought_ids) is not None,
        cut=cut,
        thought_tokens=len(thought_ids),
        answer_tokens=len(tokens) - len(thought_ids),
    )


def thinking(pieces: Sequence[bytes], tags: ThoughtTags, *, opened: bool = False) -> list[bool]:
    """For each token's bytes, whether the token belongs to a thought; the tags do.

    A token that both ends a thought and begins the answer belongs to the answer.
    """
    splitter = Splitter(tags, opened=opened)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    inside: list[bool] = []
    for number, piece in enumerate(pieces, 1):
        found = splitter.feed(decoder.decode(piece))
        # The start that the prompt made says nothing about this token.
        if found and not (number == 1 and opened and len(found) == 1 and found[0] == ("think_start", "")):
            inside += [found[-1][0] != "text"] * (number - len(inside))
    return inside + [splitter.thinking] * (len(pieces) - len(inside))
