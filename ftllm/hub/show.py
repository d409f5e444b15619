"""What a GGUF's header says, and where a run comes from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ftllm import catalogue
from ftllm.files import sha256_file
from ftllm.hub.facts import mapping
from ftllm.llama.header import Header, LongArray, array_items, read_header
from ftllm.runs import Run, find

TOKEN_ID = "_token_id"
# llama_token_type in llama.h, as far as such tokens mean something.
KINDS = {2: "unknown", 3: "control", 4: "user-defined"}
TEMPLATE = "tokenizer.chat_template"


def describe(path: Path) -> dict[str, Any]:
    """A GGUF from its header alone: facts, metadata, template, special tokens, tensor types.

    Of a model in shards, metadata are the first one's and tensors are counted over all.

    Raises:
        UserError: it is missing, not a GGUF, damaged, or cut short.
    """
    headers = [read_header(shard) for shard in catalogue.shards(path)]
    first, weights = headers[0], sum(header.n_params for header in headers)
    size = sum(header.tensor_bytes for header in headers)
    counts: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    for tensor in (tensor for header in headers for tensor in header.tensors):
        counts[tensor.type] += 1
        taken[tensor.type] += tensor.nbytes
    return {
        "path": str(path),
        "bytes": sum(header.file_size for header in headers),
        "shards": len(headers),
        "kind": first.kind,
        "name": first.name,
        "architecture": first.architecture,
        "type": first.file_type,
        "parameters": weights,
        "bits_per_weight": round(8 * size / weights, 4) if weights else None,
        "context": first.n_ctx_train or None,
        "metadata": {key: _plain(value) for key, value in first.metadata.items() if key != TEMPLATE},
        "template": first.chat_template,
        "special_tokens": special_tokens(first),
        "tensors": {kind: {"count": counts[kind], "bytes": taken[kind]} for kind in sorted(counts)},
    }


def special_tokens(header: Header) -> list[dict[str, Any]]:
    """The tokens that end, begin or mark something: id, text, kind, and the roles the metadata give them."""
    prefix = "tokenizer.ggml."
    roles: dict[int, list[str]] = {}
    for key, value in header.metadata.items():
        if key.startswith(prefix) and key.endswith(TOKEN_ID) and isinstance(value, int):
            roles.setdefault(value, []).append(key.removeprefix(prefix).removesuffix(TOKEN_ID))
    kinds = {index: KINDS[kind] for index, kind in array_items(header, f"{prefix}token_type").items() if kind in KINDS}
    texts = array_items(header, f"{prefix}tokens", {*roles, *kinds})
    return [
        {"id": index, "text": text, "kind": kinds.get(index, "normal"), "roles": roles.get(index, [])}
        for index, text in sorted(texts.items())
    ]


def lineage(run: Run, runs_root: Path) -> list[dict[str, Any]]:
    """Where a run comes from, itself first: each run it was trained from, at last the base model.

    What is no longer there is told from what its successor recorded of it.

    Raises:
        UserError: a manifest in the chain is damaged.
    """
    manifest = run.read_manifest()
    base = mapping(manifest.get("base"))
    chain = [_run_link(run, manifest)]
    seen = {run.path}
    while record := mapping(manifest.get("from")):
        parent = find(str(record.get("path")), runs_root) or find(str(record.get("run")), runs_root)
        link = {"kind": "run", "name": record.get("run"), "status": "not here"}
        link |= {key: record.get(key) for key in ("stage", "preset", "steps")}
        manifest = record
        if parent is not None and parent.path not in seen:
            seen.add(parent.path)
            manifest = parent.read_manifest()
            link = _run_link(parent, manifest)
            weights = parent.adapter / "adapter_model.safetensors"
            link["changed"] = not weights.is_file() or sha256_file(weights) != record.get("sha256")
        chain.append({**link, "continued_with": record.get("adapter")})
    named = {key: base.get(key) for key in ("repo", "revision", "path")}
    return [*chain, {"kind": "base", "name": base.get("repo") or Path(str(base.get("path", ""))).name, **named}]


def _run_link(run: Run, manifest: dict[str, Any]) -> dict[str, Any]:
    """What a lineage says of a run."""
    config, results = mapping(manifest.get("config")), mapping(manifest.get("results"))
    return {
        "kind": "run",
        "name": run.name,
        "status": manifest.get("status"),
        "started": manifest.get("started"),
        "preset": config.get("preset"),
        "stage": config.get("stage"),
        "steps": results.get("steps"),
        "train_loss": results.get("train_loss"),
        "eval_before": results.get("eval_before"),
        "eval_nll": results.get("eval_nll"),
        "data": [
            str(file.get("repo") or Path(str(file.get("path", ""))).name)
            for file in manifest.get("data") or []
            if isinstance(file, dict) and file.get("use") != "eval"
        ],
        "files": sorted(path.name for path in run.gguf.glob("*.gguf")),
    }


def _plain(value: Any) -> Any:
    """A metadata value as JSON has it; a long array as how many elements it has."""
    if isinstance(value, LongArray):
        return f"[{value.length} elements]"
    return list(value) if isinstance(value, tuple) else value
