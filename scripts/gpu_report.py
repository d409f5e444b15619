"""What `gpu_check.py` found, for people, and whether it is as it should be."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

PARITY = 0.02  # largest difference of two backends' losses, relative: both quantize and round in their own way
GRADIENT = 0.1  # largest difference of their first gradients' norms, relative: the adapters' starts may differ
FALL = 0.1  # nats that a training's loss must fall by, or agreeing would say nothing
LEAST_SPEED = 0.98  # of llama-bench
Results = Mapping[str, Any]


def shapes_of(results: Results) -> list[str]:
    return [name.partition(" ")[0] for name in results if name.endswith(" unsloth")]


def difference(results: Results, shape: str) -> float | None:
    """Largest relative difference of both backends' losses, over the steps that both made; None without any."""
    unsloth, hf = (results.get(f"{shape} {backend}", {}).get("losses", []) for backend in ("unsloth", "hf"))
    return max((abs(a - b) / abs(b) for a, b in zip(unsloth, hf, strict=False)), default=None)


def judge(results: Results) -> list[str]:
    """What failed, is missing, or is not as wanted, a line each."""
    found = []
    for name, result in results.items():
        for key in ("failed", "left_out"):
            if key in result:
                found.append(f"{name}: {' '.join(result[key].split())[:300]}")
        losses = result.get("losses", [])
        if len(losses) > 3 and statistics.median(losses[-3:]) > losses[0] - FALL:
            found.append(f"{name}: the loss did not fall: {losses[0]:.3f} to {losses[-1]:.3f}")
    for shape in shapes_of(results):
        apart = difference(results, shape)
        if apart is not None and apart > PARITY:
            found.append(f"{shape}: the losses of both backends differ by {apart:.2%}, more than {PARITY:.0%}")
        first, other = (results.get(f"{shape} {backend}", {}).get("grad_norms", []) for backend in ("unsloth", "hf"))
        if first and other and abs(first[0] - other[0]) > GRADIENT * other[0]:
            found.append(f"{shape}: the first gradients' norms differ: {first[0]:.3f} and {other[0]:.3f}")
        counts = {results.get(f"{shape} {backend}", {}).get("trainable_parameters") for backend in ("unsloth", "hf")}
        if len(counts - {None}) > 1:
            found.append(f"{shape}: the backends train different numbers of parameters: {sorted(counts - {None})}")
    if results.get("build", {}).get("offload") is False:
        found.append("build: this llama.cpp puts no layer on the GPU")
    if results.get("export", {}).get("verified") is False:
        found.append("export: not verified")
    ratio = results.get("speed", {}).get("ratio")
    if ratio is not None and ratio < LEAST_SPEED and results["machine"]["gpu"]:
        found.append(f"speed: {ratio} of llama-bench, less than {LEAST_SPEED}")
    return found


def table(results: Results) -> str:
    """The results in Markdown."""
    where = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [f"# {where['gpu'] or 'A rehearsal without a GPU'}, {where['at'][:10]}", ""]
    lines += [f"{'CUDA ' + where['cuda'] + ', ' if where['gpu'] else ''}{versions}.", ""]
    lines += ["Gemma 3 in real shapes with random weights, preset `seed`, 4-bit, a learning rate of 1e-2:", ""]
    lines += ["| shape | backend | tokens/s | peak GiB | estimated | noise and rendering | losses differ by |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for shape in shapes_of(results):
        apart = difference(results, shape)
        for backend in ("unsloth", "hf"):
            arm = results.get(f"{shape} {backend}", {})
            if "tokens_per_second" in arm:
                share = f"{arm['drawing_share']:.2%}" if "drawing_share" in arm else "-"
                busy = " *" if arm.get("building") else ""
                lines.append(
                    f"| {shape} | {backend} | {arm['tokens_per_second']}{busy} | {arm.get('peak_memory_gib', '-')} | "
                    f"{arm.get('estimated_gib', '-')} | {share} | {'-' if apart is None else f'{apart:.2%}'} |"
                )
    if any(results[name].get("building") for name in results):
        lines += ["", "\\* llama.cpp was being built beside it, on the cores left."]
    exported, fast = results.get("export", {}), results.get("speed", {})
    if "verified" in exported:
        lines += ["", f"Export to Q4_K_M in {exported['seconds']:.0f} s, verified: {exported['verified']}."]
    if "ratio" in fast:
        layers = "All layers on the GPU" if where["gpu"] else "On the CPU"
        lines += ["", f"{layers}, after 512 tokens: {fast['engine']:.1f} tokens/s, llama-bench "
                      f"{fast['llama_bench']:.1f} (ratio {fast['ratio']:.3f}, {fast['rounds']} rounds)."]  # fmt: skip
    if wrong := judge(results):
        lines += ["", "Wrong or missing:", "", *(f"- {complaint}" for complaint in wrong)]
    return "\n".join(lines) + "\n"
