"""`ftllm doctor`: what is installed here, what works, and what to do about the rest."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from ftllm import __version__
from ftllm.errors import UserError
from ftllm.progress import Reporter

FAILED = 1
# What each extra brings, by the names of the distributions.
EXTRAS = {
    "export": ("torch", "transformers", "safetensors", "sentencepiece", "protobuf", "pip"),
    "train": ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "math-verify"),
    "gpu": ("unsloth", "unsloth_zoo", "bitsandbytes"),
}


def doctor(
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch llama.cpp's converter now, so that exports work offline.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print problems only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print every library's version, and tracebacks.")] = False,
) -> None:
    """Check this machine: versions, llama.cpp and what its build can do, converter, disk, memory, missing extras.

    Exits with 1 when something every verb needs does not work.

    \b
    Examples:
      ftllm doctor
      ftllm doctor --fetch
    """
    reporter = Reporter(quiet=quiet or json_output, verbose=verbose)
    if fetch:
        from ftllm.export import fetch as converters

        converters.ensure(say=reporter.say)
    findings = examine()
    if json_output:
        print(json.dumps(findings, ensure_ascii=False))
    else:
        show(findings, quiet=quiet, verbose=verbose)
    if findings["problems"]:
        raise typer.Exit(FAILED)


def examine() -> dict[str, Any]:
    """Everything `doctor` looks at; `problems` break every verb, `advice` only some."""
    problems: list[str] = []
    advice: list[str] = []
    findings = {
        "ftllm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "llama_cpp": _llama(problems, advice),
        "converter": _converter(advice),
        "extras": _extras(advice),
        "room": _room(),
        "versions": _versions(),
    }
    return {**findings, "problems": problems, "advice": advice}


def show(findings: dict[str, Any], *, quiet: bool, verbose: bool) -> None:
    """The findings for a person: one line a subject, then what is wrong."""
    from rich.console import Console

    from ftllm.files import human

    console = Console(highlight=False, soft_wrap=True, markup=False)
    llama, converter, room = findings["llama_cpp"], findings["converter"], findings["room"]
    if not quiet:
        console.print(f"ftllm      {findings['ftllm']}, Python {findings['python']}, {findings['platform']}")
        if llama["loads"]:
            gpu = "can use a GPU" if llama["gpu_offload"] else "CPU only"
            console.print(f"llama.cpp  llama-cpp-python {llama['version']}, {gpu}, {llama['library']}")
            console.print(f"processor  {llama['cpus']} usable cores; {_repacking(llama)}")
        console.print(f"converter  {converter['state']} ({converter['path']})")
        for extra, missing in findings["extras"].items():
            state = "complete" if not missing else f"lacks {', '.join(missing)}: pip install 'ftllm[{extra}]'"
            console.print(f"{'[' + extra + ']':<10} {state}")
        memory = "unknown" if room["memory_free"] is None else human(room["memory_free"])
        console.print(f"room       {human(room['disk_free'])} of disk free here, {memory} of memory")
        console.print(f"cache      {room['cache']}, {human(room['cache_disk_free'])} free")
        if verbose:
            for name, version in findings["versions"].items():
                console.print(f"  {name} {version}")
        for line in findings["advice"]:
            console.print(f"note: {line}")
    for line in findings["problems"]:
        console.print(f"problem: {line}")


def _repacking(llama: dict[str, Any]) -> str:
    if llama["repacked_weights_work"] is None:
        return "llama.cpp crashes on quantized weights"
    if llama["repacked_weights_work"]:
        return "llama.cpp repacks weights for it"
    return "weights are not repacked, for this build crashes when they are"


def _llama(problems: list[str], advice: list[str]) -> dict[str, Any]:
    """Load llama.cpp, and have the probe try it."""
    from ftllm.llama import native, probe
    from ftllm.llama.machine import available_cpus

    found: dict[str, Any] = {"loads": False, "version": _version("llama-cpp-python"), "cpus": available_cpus()}
    try:
        found |= {"library": str(native.library_path()), "gpu_offload": native.supports_gpu(), "loads": True}
    except UserError as error:
        problems.append(f"{error.message} ({error.hint})")
        return found
    amx = "amx_tile" in _cpu_flags()
    found |= {"amx": amx, "repacked_weights_work": None}
    try:
        found["repacked_weights_work"] = probe.extra_buffers_work()
    except UserError as error:
        problems.append(f"{error.message} ({error.hint})")
        return found
    if not found["repacked_weights_work"]:
        why = "an upstream fault with AMX (llama.cpp #20824)" if amx else "a fault of this build"
        advice.append(
            f"llama.cpp crashes here on repacked quantized weights, {why}; ftllm avoids it, at some speed."
            " To repair it: CFLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16' CXXFLAGS=\"$CFLAGS\""
            " pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
        )
    if not found["gpu_offload"] and _nvidia():
        advice.append(
            "there is an NVIDIA GPU, but this llama.cpp was built without CUDA: see the README's CUDA section"
        )
    return found


def _converter(advice: list[str]) -> dict[str, Any]:
    from ftllm.export import fetch

    version = _version("llama-cpp-python") or ""
    state = fetch.state(version) if version else "missing"
    if state == "missing":
        advice.append(
            "llama.cpp's converter is not here yet: the first export fetches it, or `ftllm doctor --fetch` now"
        )
    if state == "damaged":
        advice.append("llama.cpp's converter in the cache is damaged: the next export, or `--fetch`, fetches it again")
    return {"state": state, "path": str(fetch.cache_root() / version), "tested": version in fetch.TESTED}


def _extras(advice: list[str]) -> dict[str, list[str]]:
    missing = {extra: [name for name in names if _version(name) is None] for extra, names in EXTRAS.items()}
    for extra, verb in (("export", "export"), ("train", "train")):
        if missing[extra]:
            advice.append(f"`ftllm {verb}` needs more: pip install 'ftllm[{extra}]'")
    return missing


def _room() -> dict[str, Any]:
    from ftllm import files
    from ftllm.export import fetch, preflight

    cache = fetch.cache_root().parent
    return {
        "disk_free": files.disk_free(Path()),
        "memory_free": preflight.memory_free(),
        "cache": str(cache),
        "cache_disk_free": files.disk_free(cache),
    }


def _versions() -> dict[str, str]:
    from ftllm.runs import library_versions

    return library_versions()


def _version(name: str) -> str | None:
    return _or_none(lambda: metadata.version(name))


def _or_none(read: Callable[[], str]) -> str | None:
    try:
        return read()
    except (metadata.PackageNotFoundError, OSError):
        return None


def _cpu_flags() -> set[str]:
    text = _or_none(lambda: Path("/proc/cpuinfo").read_text()) or ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(line.split())


def _nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists()
