"""Tokens per second with drafts looked up in the text (`--speculate`) against without, in turns on one engine.

    python scripts/bench/speculation.py                       # the 310 M shape of gemma300m.py; a minute and a half
    python scripts/bench/speculation.py --model some.gguf --rounds 5

repeats  asked to say a piece of code again, greedily. A model with random weights comes to repeat itself, which is
         what drafts are best at: its figure is a bound
free     a text sampled at temperature 1, in which drafts are seldom right: what they cost
"""

from __future__ import annotations

import argparse
import queue
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import platformdirs

from ftllm.chat.engine import Engine
from ftllm.chat.events import AnyEvent, Done, Failed, Prepared, Stats, TextDelta
from ftllm.chat.options import LoadSettings, ReplyOptions

CODE = Path(__file__).read_text(encoding="utf-8")[:600]
PROMPTS = {"repeats": f"Write this once more, with `queue` renamed to `inbox`:\n\n{CODE}", "free": "Tell me a story."}
TEMPERATURES = {"repeats": 0.0, "free": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cached = Path(platformdirs.user_cache_dir("ftllm")) / "bench" / "gemma300m-Q4_K_M.gguf"
    parser.add_argument("--model", type=Path, default=cached)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if not asked.model.is_file():
        raise SystemExit(f"{asked.model} is missing: run scripts/bench/engine.py, which makes it, or give --model")
    events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
    with Engine(events.put) as engine:
        engine.load(asked.model, LoadSettings(n_ctx=4096))
        for kind, prompt in PROMPTS.items():
            pairs = [compare(engine, events, kind, prompt, asked.tokens, seed) for seed in range(asked.rounds)]
            without, drafted = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
            ratio = statistics.median(drafted / without for without, drafted in pairs)
            print(f"{kind:8} {without:7.1f} tokens/s without, {drafted:7.1f} with drafts: {ratio:.3f}", flush=True)


def compare(
    engine: Engine, events: queue.SimpleQueue[AnyEvent], kind: str, prompt: str, tokens: int, seed: int
) -> tuple[float, float]:
    """Tokens per second without and with drafts; tells where the greedy text is not the same."""
    found: dict[bool, tuple[float, str]] = {}
    for speculate in (False, True) if seed % 2 else (True, False):
        options = ReplyOptions(
            max_tokens=tokens,
            ignore_end=True,
            loops="off",
            temperature=TEMPERATURES[kind],
            seed=seed,
            speculate=speculate,
        )
        engine.generate([{"role": "user", "content": prompt}], options)
        found[speculate] = reply(events)
    if kind == "repeats" and found[True][1] != found[False][1]:
        print("the greedy text with drafts is another one", file=sys.stderr)
    return found[False][0], found[True][0]


def reply(events: queue.SimpleQueue[AnyEvent]) -> tuple[float, str]:
    """The speed and the text of a reply, once the engine is at rest again."""
    speed, text = 0.0, ""
    while not isinstance(event := events.get(), Prepared):
        if isinstance(event, Failed):
            raise SystemExit(f"the engine failed: {event.message}")
        if isinstance(event, Stats):
            speed = event.tokens_per_second or 0.0
        if isinstance(event, TextDelta):
            text += event.text
        if isinstance(event, Done) and not text.strip():
            break  # there is nothing to be read again
    return speed, text


if __name__ == "__main__":
    main()
