"""The worker process: `python -m ftllm.export.worker`.

One JSON job on the first line of stdin; JSON events, one a line, on stdout. After the `plan` event it waits for a line
on stdin (`{"go": true}`) before it writes anything. When stdin closes, its parent is gone: it removes what it wrote
and exits.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from ftllm import structure
from ftllm.errors import UserError, WorkError
from ftllm.thoughts import tags_of

CONTROL, USER_DEFINED = 3, 4  # llama_token_type in llama.h


def serve(run: Callable[[dict[str, Any], Channel], None], prepare: Callable[[], None] | None = None) -> None:
    """Run the job that arrives; every failure becomes an `error` event and exit code 1.

    Args:
        prepare: what can be done before the job is there.
    """
    structure.remember()
    channel = Channel()
    try:
        if prepare is not None:
            prepare()
        run(channel.receive(), channel)
    except UserError as error:
        kind = "work" if isinstance(error, WorkError) else "user"
        channel.fail(kind, error.message, error.hint)
    except OSError as error:
        from ftllm.files import storage_error

        known = storage_error(error, Path(error.filename or "the output"))
        if not isinstance(known, UserError):
            raise
        channel.fail("work", known.message, known.hint)
    except MemoryError:
        channel.fail("work", "out of memory", "close other programs, or take a machine with more")


class Channel:
    """JSON lines to and from the parent. Whatever else prints to stdout, native code too, goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lines: list[str] = []
        self._arrived = threading.Condition()
        self.partials: list[Path] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, event: str, **fields: Any) -> None:
        self._out.write(json.dumps({"event": event, **fields}) + "\n")
        self._out.flush()

    def receive(self) -> dict[str, Any]:
        """The next line from the parent."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._lines)
            value: dict[str, Any] = json.loads(self._lines.pop(0))
        return value

    def fail(self, kind: str, message: str, hint: str) -> NoReturn:
        """Remove the files being written, tell the parent why, and exit."""
        self.abandon()
        self.send("error", kind=kind, message=message, hint=hint)
        sys.stderr.flush()
        os._exit(1)

    def abandon(self) -> None:
        """Remove the files being written."""
        for path in self.partials:
            path.unlink(missing_ok=True)

    def _listen(self) -> None:
        for line in sys.stdin:
            with self._arrived:
                self._lines.append(line)
                self._arrived.notify_all()
        self.abandon()
        os._exit(1)


class Progress:
    """Tells the parent the tokens done, ten times a second at most."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last > 0.1 or done == total:
            self._last = time.monotonic()
            self._channel.send("checking", done=done, total=total)


def prepare() -> None:
    """Import what upstream's converter will, and what it does not need itself."""
    gc.disable()  # everything made until the pass begins stays
    from ftllm.export import lean

    lean.skip_documentation()
    import torch  # noqa: F401
    import transformers.models.auto.configuration_auto  # noqa: F401


def run(job: dict[str, Any], channel: Channel) -> None:
    """Plan, wait for the word, and stream.

    Args:
        job: `converter` (directory), `base`, `adapter` (or null), `name`, `files` (each with `label`, `type` and
            `importance`, whether there will be an importance matrix), `overrides` (pairs of expression and ggml's
            type), `split` (bytes, or null), `values` (metadata to add), `check` (read chunks back).
    """
    root = Path(job["converter"])
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    started = time.monotonic()
    channel.send("stage", stage="load")
    from ftllm.export import convert, ollama, plan
    from ftllm.export.headers import Headers
    from ftllm.export.lora import read_adapter
    from ftllm.llama.types import FILE_TYPES

    adapter = read_adapter(Path(job["adapter"])) if job["adapter"] else None
    conversion = convert.open_checkpoint(Path(job["base"]), adapter, job["name"])
    spare_thought_tags(conversion.model.gguf_writer)
    add_values(conversion.model.gguf_writer, job["values"])
    headers = Headers(conversion.model.gguf_writer)
    float_file = [plan.Planned(name, shape, conversion.kinds[name]) for name, shape in conversion.shapes.items()]
    skeleton = headers.skeleton(float_file, FILE_TYPES[conversion.float_kind])
    wanted = [(file["type"], file["importance"]) for file in job["files"]]
    plans = plan.plan_all(wanted, float_file, skeleton, [(text, kind) for text, kind in job["overrides"]])
    shards = [item.shards(job["split"]) for item in plans]
    metadata = {key: value.value for key, value in conversion.model.gguf_writer.kv_data[0].items()}
    channel.send(
        "plan",
        ollama=ollama.describe(metadata),
        architecture=conversion.model.gguf_writer.arch,
        float_type=conversion.float_kind,
        tensors=len(conversion.shapes),
        parameters=sum(prod(shape) for shape in conversion.shapes.values()),
        largest=conversion.largest_whole(),
        merged=conversion.merged,
        renamed={name: conversion.gguf_name(name) for name in conversion.merged},
        names=conversion.names,
        files=[
            {
                "label": file["label"],
                "type": item.quant,
                "imatrix": file["importance"],
                "bytes": sum(map(len, headers.headers(parts, FILE_TYPES[item.quant])))
                + sum(plan.padded(tensor.nbytes) for tensor in item.tensors),
                "shards": len(parts),
                "bits_per_weight": item.bits_per_weight,
                "types": plan.types_of(item),
                "fallbacks": item.fallbacks,
                "needs_imatrix": bool(item.requiring()),
            }
            for file, item, parts in zip(job["files"], plans, shards, strict=True)
        ],
        seconds=time.monotonic() - started,
    )
    order = channel.receive()
    gc.freeze()
    gc.enable()
    if order.get("go"):
        write(conversion, headers, list(zip(job["files"], plans, shards, strict=True)), order, job["check"], channel)


def write(
    conversion: Any, headers: Any, files: list[Any], order: dict[str, Any], check: bool, channel: Channel
) -> None:
    """Stream into `paths` (by label, a path for each shard), report sizes, hashes and errors, and sync.

    What is written can be read, and so verified, while the disk still takes it in. Files that have no paths are left
    out.
    """
    import xxhash

    from ftllm.export import importance, stream
    from ftllm.llama.types import FILE_TYPES

    started = time.monotonic()
    channel.partials = [Path(path) for paths in order["paths"].values() for path in paths]
    matrix = importance.load(Path(order["importance"])) if order["importance"] else None
    files = [planned for planned in files if planned[0]["label"] in order["paths"]]
    outputs = []
    for file, item, shards in files:
        extra: dict[str, tuple[Any, Any]] = {}
        values: Any = {}
        if matrix is not None and file["importance"]:
            matrix.check(item)
            values = matrix.values
            kinds = {str: headers.kind("STRING"), int: headers.kind("UINT32")}
            extra = {key: (value, kinds[type(value)]) for key, value in matrix.metadata().items()}
        starts = headers.headers(shards, FILE_TYPES[item.quant], extra)
        paths = [Path(path) for path in order["paths"][file["label"]]]
        parts = [
            stream.Part(path, start, len(tensors), path.open("wb"), checksum=xxhash.xxh3_128() if check else None)
            for path, start, tensors in zip(paths, starts, shards, strict=True)
        ]
        outputs.append(stream.Output(item, parts, values))
    last = 0.0

    def progress(done: int, tensor: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.1:
            last = time.monotonic()
            channel.send("progress", done=done, tensor=tensor)

    try:
        stream.stream(outputs, conversion.rows, check=check, progress=progress)
        for part in (part for output in outputs for part in output.parts):
            part.file.flush()
        channel.send("written", files=_made(files, outputs), seconds=time.monotonic() - started)
        started = time.monotonic()
        for part in (part for output in outputs for part in output.parts):
            os.fsync(part.file.fileno())
            part.file.close()
    except OSError as error:
        error.filename = error.filename or str(outputs[0].parts[0].path.parent)
        raise
    channel.send("synced", seconds=time.monotonic() - started)


def _made(files: list[Any], outputs: list[Any]) -> list[dict[str, Any]]:
    """What the parent is told of each type's files."""
    return [
        {
            "label": file["label"],
            "shards": [
                {
                    "path": str(part.path),
                    "bytes": part.size,
                    "sha256": part.digest.hexdigest(),
                    "xxh3": part.checksum.hexdigest() if part.checksum is not None else None,
                    "tensors": part.tensors,
                }
                for part in output.parts
            ],
            "largest_error": output.worst[0],
            "largest_error_tensor": output.worst[1],
            "mean_errors": {kind: sum(all_) / len(all_) for kind, all_ in output.errors.items()},
        }
        for (file, _, _), output in zip(files, outputs, strict=True)
    ]


def add_values(writer: Any, values: dict[str, Any]) -> None:
    """Write strings and counts of our own into the metadata, over what the model card gave."""
    stale = (
        [key for key in writer.kv_data[0] if key.startswith("general.base_model.")]
        if "general.base_model.count" in values
        else []
    )
    for key in stale:
        writer.remove_key(key)
    for key, value in values.items():
        writer.remove_key(key)
        if isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)


def spare_thought_tags(writer: Any) -> None:
    """Mark thought tags that are control tokens as user-defined: control tokens vanish when text is put together."""
    values = writer.kv_data[0]
    kinds, tokens = values.get("tokenizer.ggml.token_type"), values.get("tokenizer.ggml.tokens")
    if kinds is None or tokens is None:
        return
    template = values.get("tokenizer.chat_template")
    tags = tags_of(template.value if template is not None else None)
    texts = {"<think>", "</think>", tags.open, tags.close}
    wanted = texts | {text.encode() for text in texts}  # the converter has tokens as bytes, or as text
    for index, token in enumerate(tokens.value):
        if (bytes(token) if isinstance(token, bytearray) else token) in wanted and kinds.value[index] == CONTROL:
            kinds.value[index] = USER_DEFINED


def main() -> None:
    """Do the job that arrives on stdin."""
    serve(run, prepare)


if __name__ == "__main__":
    main()
