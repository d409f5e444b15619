"""Images for vision models: llama.cpp's mtmd, over a projector (mmproj) GGUF.

An image takes positions in the context as tokens do. In our lists of token ids it stands as that many negative
numbers that come from the image's bytes, so that two prompts share an image exactly where it is the same one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftllm.errors import UserError, WorkError
from ftllm.files import read_image
from ftllm.llama import native
from ftllm.llama.header import Header, read_header
from ftllm.llama.identity import fingerprint

if TYPE_CHECKING:
    from ftllm.llama.context import Context
    from ftllm.llama.model import Model

KEPT = 64  # images, or pieces of them, held for another evaluation; those of the last prompt whatever their number
FIRST_ID = -2  # ids of images go down from here; -1 is llama.cpp's "no token"


@dataclass(frozen=True)
class Image:
    """An image cut to the model's size, in a prompt.

    Attributes:
        ids: the negative numbers that stand for it, one a position.
        handle: the `mtmd_input_chunk *`.
    """

    ids: tuple[int, ...]
    handle: int
    owner: Any = field(repr=False)  # frees the handle


class Projector:
    """A loaded mmproj. Close it before its model; its images are of no use then."""

    def __init__(self, path: Path, model: Model, *, n_threads: int) -> None:
        """Load the projector of a model.

        Raises:
            UserError: the file is no projector, not this model's, or of a kind this llama.cpp does not know.
        """
        check_projector(path, model.header)
        api = self._api = _bindings()
        self.path = path
        self.marker = f"<__image_{secrets.token_hex(8)}__>"  # nothing that anyone writes
        params = api.mtmd_context_params_default()
        params.use_gpu = native.supports_gpu() and model.gpu_layers != 0
        params.print_timings = False
        params.n_threads = n_threads
        params.media_marker = self.marker.encode()
        params.warmup = False
        with native.captured() as lines:
            handle = api.mtmd_init_from_file(os.fsencode(path), model.handle, params)
        if not handle:
            reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
            raise UserError(
                f"{path} cannot be loaded for {model.path.name}: {reason.strip()}", "use the model's own mmproj"
            )
        self._handle: int | None = handle
        self._key = fingerprint(read_header(path)).encode()
        self._images: dict[int, Image] = {}  # by the first of their ids, the oldest first
        if not api.mtmd_support_vision(handle):
            self.close()
            raise UserError(f"{path} is not for images", "use an mmproj with a vision encoder")

    def close(self) -> None:
        """Free it. Closing twice is fine."""
        if self._handle is not None:
            self._api.mtmd_free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def image(self, first_id: int) -> Image:
        """The image whose ids begin with `first_id`, as `split` gave it.

        Raises:
            WorkError: it is not known any more.
        """
        try:
            return self._images[first_id]
        except KeyError:
            raise WorkError("an image is not in memory any more", "ask again") from None

    def encode(self, text: str, images: Sequence[Path]) -> list[int]:
        """A text with a `marker` for each image, as ids, and what models want around an image with them.

        Special tokens in the text are parsed, no BOS is added. The images are kept, for `image`.

        Raises:
            UserError: an image cannot be read.
            WorkError: llama.cpp failed.
        """
        api, data = self._api, text.encode("utf-8", "replace")
        bitmaps = []
        chunks = api.mtmd_input_chunks_init()
        try:
            for path in images:
                bitmaps.append(self._bitmap(path))
            given = api.mtmd_input_text(text=data, text_len=len(data), add_special=False, parse_special=True)
            array = (api.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            status = api.mtmd_tokenize(self._handle, chunks, ctypes.byref(given), array, len(bitmaps))
            if status:
                raise WorkError(f"llama.cpp could not prepare the images ({status}): {'; '.join(native.recent_log(3))}")
            parts = list(self._parts(chunks))
            held = max(KEPT, sum(part[0] <= FIRST_ID for part in parts if part))
            for oldest in list(self._images)[: max(0, len(self._images) - held)]:
                del self._images[oldest]
            return [number for part in parts for number in part]
        finally:
            api.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                api.mtmd_bitmap_free(bitmap)

    def decode(self, context: Context, image: Image, start: int, sequence: int = 0) -> None:
        """Encode an image and evaluate it from position `start` on.

        Raises:
            WorkError: llama.cpp failed.
        """
        after = ctypes.c_int32(0)
        status = self._api.mtmd_helper_eval_chunk_single(
            self._handle, context.handle, image.handle, start, sequence, context.n_batch, False, ctypes.byref(after)
        )
        context.forget_outputs()
        if status:
            raise WorkError(f"llama.cpp could not evaluate an image ({status}): {'; '.join(native.recent_log(3))}")

    def _bitmap(self, path: Path) -> int:
        """llama.cpp's bitmap of an image file, its id the SHA-256 of its bytes."""
        data = read_image(path)
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        bitmap = self._api.mtmd_helper_bitmap_init_from_buf(self._handle, buffer, len(data), False) if data else None
        if not bitmap or self._api.mtmd_bitmap_is_audio(bitmap):
            if bitmap:
                self._api.mtmd_bitmap_free(bitmap)
            raise UserError(f"{path} is no image that llama.cpp can read", "give a JPEG, PNG, BMP or GIF file")
        self._api.mtmd_bitmap_set_id(bitmap, hashlib.sha256(data).hexdigest().encode())
        return int(bitmap)

    def _parts(self, chunks: int) -> Iterator[tuple[int, ...]]:
        """The ids of each chunk; an image that is cut into several chunks has ids of its own for each."""
        api = self._api
        counts: Counter[bytes] = Counter()
        for index in range(api.mtmd_input_chunks_size(chunks)):
            chunk = api.mtmd_input_chunks_get(chunks, index)
            if api.mtmd_input_chunk_get_type(chunk) == api.MTMD_INPUT_CHUNK_TYPE_TEXT:
                length = ctypes.c_size_t(0)
                tokens = api.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(length))
                yield tuple(tokens[: length.value])
                continue
            digest = bytes(api.mtmd_input_chunk_get_id(chunk))
            seed = b"".join([self._key, digest, counts[digest].to_bytes(4, "little")])
            ids = tuple(_number(seed, place) for place in range(api.mtmd_input_chunk_get_n_pos(chunk)))
            counts[digest] += 1
            self._images.pop(ids[0], None)
            copy = api.mtmd_input_chunk_copy(chunk)
            self._images[ids[0]] = Image(ids, copy, _Owner(api, copy))
            yield ids


class _Owner:
    """Frees a chunk when nobody needs it any more."""

    def __init__(self, api: Any, handle: int) -> None:
        self._api, self._handle = api, handle

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._api.mtmd_input_chunk_free(self._handle)


def check_projector(path: Path, model: Header) -> None:
    """Refuse what is no projector of a model, as far as headers tell.

    Raises:
        UserError: it is missing, damaged, something else, or makes embeddings of another width.
    """
    header = read_header(path)
    if header.architecture != "clip":
        raise UserError(f"{path} is a GGUF of kind {header.kind!r}, not an mmproj", "give the model's mmproj file")
    if not header.metadata.get("clip.has_vision_encoder"):
        raise UserError(f"{path} is not for images", "use an mmproj with a vision encoder")
    width = header.metadata.get("clip.vision.projection_dim")
    if isinstance(width, int) and width != model.integer("embedding_length"):
        raise UserError(
            f"{path} makes embeddings of width {width}, {model.path.name} wants {model.integer('embedding_length')}",
            "use the model's own mmproj",
        )


def find_projector(model: Path) -> Path | None:
    """The mmproj beside a GGUF that fits it; None without one.

    Of several, the one whose name is most like the model's, then the larger file (16-bit ones are usual).
    """
    header = read_header(model)
    fitting = []
    for path in sorted(model.parent.glob("*.gguf")):
        if "mmproj" in path.name.lower():
            with contextlib.suppress(UserError):
                check_projector(path, header)
                names = path.name.lower().replace("mmproj-", ""), model.name.lower()
                alike = next((i for i, (a, b) in enumerate(zip(*names, strict=False)) if a != b), len(names[0]))
                fitting.append((alike, path.stat().st_size, path))
    return max(fitting)[2] if fitting else None


def _number(seed: bytes, place: int) -> int:
    """The id of one position of an image: any negative 32-bit number but -1."""
    digest = hashlib.sha256(seed + place.to_bytes(4, "little")).digest()
    return FIRST_ID - int.from_bytes(digest[:4], "little") % (2**31 - 3)


def _bindings() -> Any:
    """llama-cpp-python's module for mtmd, its log captured with llama.cpp's."""
    native.api()
    try:
        from llama_cpp import mtmd_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise WorkError(f"llama.cpp was built without images: {error}", "install llama-cpp-python again") from error
    for name in ("mtmd_log_set", "mtmd_helper_log_set"):
        getattr(mtmd_cpp, name)(native.log_callback(), ctypes.c_void_p(0))
    return mtmd_cpp
