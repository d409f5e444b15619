"""What the model has read: the tokens in its KV cache, and the ways back to an earlier place in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ftllm.chat.lookup import Lookup
from ftllm.chat.prompt import common_prefix
from ftllm.chat.states import label_of
from ftllm.errors import WorkError
from ftllm.files import whole_file, write_json
from ftllm.llama import native
from ftllm.llama.context import AbortedError, Context
from ftllm.llama.state import load_file, restore, save_file, snapshot
from ftllm.llama.vision import FIRST_ID
from ftllm.values import dataclass

CHUNK = 512  # tokens of prompt between two looks at whether to stop (where llama.cpp cannot be aborted: on GPUs)
POINTS = 4  # places to come back to: before and after the last two turns
POINTS_BYTES = 1 << 30  # and no more of them than fit in here


@dataclass(frozen=True)
class Point:
    """A place to come back to where the cache cannot simply be cut: the state after the first `length` tokens."""

    length: int
    state: bytes


class Memory:
    """The tokens in sequence 0 of a context. What two prompts share at their beginning is evaluated once.

    The cache of a plain transformer is cut where a new prompt differs. Sliding windows and recurrent states forget
    what such a cut would need, so `mark` keeps their (small) state at places a conversation comes back to; without
    one early enough, all is evaluated again.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tokens: list[int] = []
        self._recurrent = context.recurrent
        self.needs_marks = self._recurrent or context.window > 0
        self._points: list[Point] = []
        self._ahead: list[int] = []  # a draft's tokens in the cache that are not confirmed
        self._drafted = 0
        self.output = -1  # which of the last batch's logits are those of the last token

    def __len__(self) -> int:
        return len(self.tokens)

    def rewind(self, ids: Sequence[int]) -> int:
        """Keep as much of the beginning that the cache shares with `ids` as can be kept; how many tokens that is.

        Never all of `ids`: the last one's logits are wanted.
        """
        self._rewind(common_prefix(self.tokens, ids[:-1]))
        return len(self.tokens)

    def forget(self) -> None:
        """Empty the cache, whatever it holds now."""
        self.context.clear()
        self._ahead, self.output = [], -1
        self.tokens.clear()
        self._points.clear()

    def mark(self) -> None:
        """Make this a place that `rewind` comes back to at once."""
        self._drop_draft()
        length = len(self.tokens)
        if not self.needs_marks or not length or any(point.length == length for point in self._points):
            return
        self._points = [*self._points, Point(length, snapshot(self.context))][-POINTS:]
        while len(self._points) > 1 and sum(len(point.state) for point in self._points) > POINTS_BYTES:
            del self._points[0]

    def evaluate(
        self,
        ids: Sequence[int],
        *,
        stop: Callable[[], bool],
        progress: Callable[[], None] = lambda: None,
        mark: int = 0,
    ) -> bool:
        """Bring `ids`, which begin with what the cache holds, into it; False when `stop` said so on the way.

        Args:
            stop: asked between operations on a CPU, between chunks elsewhere and where half a chunk cannot be undone.
            progress: called after each chunk.
            mark: a length at which to `mark`; 0 for none.
        """
        self.context.set_abort(None if self._recurrent else stop)
        try:
            while len(self.tokens) < len(ids):
                if stop():
                    return False
                start = len(self.tokens)
                end = min(start + self.context.n_batch, len(ids), mark if start < mark else len(ids))
                end = next((place for place in range(start, end) if ids[place] <= FIRST_ID), end)
                try:
                    if end == start:
                        end = self._see(ids[start])
                    else:
                        wanted: Literal["last", "none"] = "last" if end == len(ids) else "none"
                        self.context.decode(ids[start:end], start=start, logits=wanted)
                except AbortedError:
                    self._rewind(start)
                    return False
                self.tokens.extend(ids[start:end])
                if end == mark:
                    self.mark()
                progress()
        finally:
            self.context.set_abort(None)
        return not stop()

    def _see(self, first_id: int) -> int:
        """Evaluate the image that begins here; where it ends."""
        projector = self.context.model.projector
        if projector is None:
            raise WorkError("the model sees no images")
        image = projector.image(first_id)
        projector.decode(self.context, image, len(self.tokens))
        return len(self.tokens) + len(image.ids)

    def append(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens that go on from here."""
        self._drop_draft()
        if len(tokens) == 1:
            self.context.decode_one(tokens[0], len(self.tokens))
        else:
            self.context.decode(tokens, start=len(self.tokens))
        self.tokens.extend(tokens)

    def advance(self, token: int, lookup: Lookup) -> None:
        """Evaluate one token that goes on from here, and with it what `lookup` expects to follow.

        Where the last draft foretold it, it is evaluated already.
        """
        lookup.add(token)
        if self._ahead and self._ahead[0] == token:
            self.tokens.append(self._ahead.pop(0))
            self.output += 1
            if not self._ahead:
                lookup.told(self._drafted, self._drafted)
            return
        if self._ahead:
            lookup.told(self._drafted - len(self._ahead), self._drafted)
        self._drop_draft()
        start = len(self.tokens)
        room = 0 if self._recurrent else self.context.n_ctx - start - 1
        draft = lookup.draft()[:room]
        self.context.decode([token, *draft], start=start, logits="all" if draft else "last")
        self.tokens.append(token)
        self._ahead, self._drafted = draft, len(draft)
        self.output = 0 if draft else -1

    def _drop_draft(self) -> None:
        """Take what was not confirmed out of the cache; its logits go with it."""
        if not self._ahead:
            self.output = -1
            return
        self._ahead, self.output = [], -1
        length = len(self.tokens)
        if not (self.context.can_remove(0, length) and self.context.remove(0, length)):
            tokens = self.tokens.copy()
            self.forget()
            self.context.decode(tokens, start=0)
            self.tokens = tokens

    def save(self, path: Path, model: str) -> int:
        """Write the cache to a file, and beside it whose it is; its size in bytes.

        Raises:
            WorkError: no space left.
            UserError: the place cannot be written.
        """
        self._drop_draft()
        with whole_file(path) as partial:
            size = save_file(self.context, partial, self.tokens)
        write_json(label_of(path), {**_key(model), "tokens": len(self.tokens), "bytes": size})
        return size

    def load(self, path: Path, model: str) -> str:
        """Take the cache from a file; why not, or nothing."""
        try:
            label = json.loads(label_of(path).read_text(encoding="utf-8"))
            size = path.stat().st_size
        except (OSError, ValueError):
            return "there is no saved state"
        if not isinstance(label, dict) or {key: label.get(key) for key in _key(model)} != _key(model):
            return "it was saved by another model, or another version of llama.cpp"
        if size != label.get("bytes"):
            return "the file is damaged"
        if not isinstance(label.get("tokens"), int) or label["tokens"] >= self.context.n_ctx:
            return f"its {label.get('tokens')} tokens do not fit in the context of {self.context.n_ctx}"
        self.forget()
        tokens = load_file(self.context, path)
        if tokens is None:
            self.forget()
            return "llama.cpp does not accept it"
        self.tokens = tokens
        self.mark()
        return ""

    def _rewind(self, length: int) -> None:
        """Go back to the first `length` tokens, or as near before that as there is a way."""
        self._ahead, self.output = [], -1  # cut off with the rest
        if length == len(self.tokens) == self.context.length():
            return
        if length and self.context.can_remove(0, length) and self.context.remove(0, length):
            self._cut(length)
            return
        while self._points:
            point = self._points[-1]
            if point.length <= length and restore(self.context, point.state):
                self.context.remove(0, point.length)
                self._cut(point.length)
                return
            self._points.pop()
        self.forget()

    def _cut(self, length: int) -> None:
        del self.tokens[length:]
        self._points = [point for point in self._points if point.length <= length]


def _key(model: str) -> dict[str, str]:
    """What must agree for a saved state to be this model's; llama.cpp itself checks the cache's shape and types."""
    return {"model": model, "llama_cpp_python": native.version()}
