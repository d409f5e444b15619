"""What a card says about a training: how it was done, what it changed, and on what."""

from __future__ import annotations

import re
from typing import Any

from ftllm.hub.facts import Facts, mapping, number
from ftllm.hub.markdown import code, fenced, table

METHODS = {
    "ft": "Fragmented Training: the user's words change places, anew every epoch; the answers stay as they are",
    "seed": "Fragmented Training as its author published it: the user's words change places, once",
    "sft": "supervised fine-tuning, without noise",
}
PAPER = "[doi:10.57967/hf/7592](https://doi.org/10.57967/hf/7592)"
# What is shown of graded replies: title, the report's key, and whether it is a share.
GRADED = (
    ("right", "accuracy", True),
    ("thinks first", "think_rate", True),
    ("tokens of thought", "thought_tokens", False),
    ("thoughts that loop", "looping", True),
)
SHOWN = 4
LONG = 4000  # characters of a sample


def method(facts: Facts) -> str:
    """The method in words; empty where no training is known."""
    return METHODS.get(str(facts.config.get("preset", "")), "")


def did_it_work(facts: Facts) -> str:
    """Before and after, on what was held out; empty where nothing was measured."""
    results = mapping(facts.manifest.get("results"))
    before, after = results.get("eval_before"), results.get("eval_nll")
    parts = []
    if number(before) and number(after):
        held, tokens = mapping(facts.manifest.get("rows")).get("held_out"), results.get("eval_tokens")
        worse = "" if after < before else " **The training made them less likely.**"
        parts.append(
            f"On {held} held-out conversations ({tokens} assistant tokens), before and after training, in "
            f"transformers:{worse}\n\n"
            + table(
                ["", "before" if facts.manifest.get("from") else "base", "trained", "change"],
                [
                    [
                        "negative log-likelihood per assistant token, nats",
                        f"{before:.4f}",
                        f"{after:.4f}",
                        f"{after - before:+.4f}",
                    ]
                ],
                (1, 2, 3),
            )
        )
    if replies := graded(facts):
        parts.append(replies)
    if curve := loss_curve(facts):
        parts.append(curve)
    return "\n\n".join(parts)


def graded(facts: Facts) -> str:
    """How many prompts were answered rightly, and how many with a thought; empty where nothing was graded."""
    report = facts.evaluation
    models = [model for model in report.get("graded") or [] if isinstance(model, dict)]
    if not models or not mapping(models[-1].get("overall")).get("n"):
        return ""
    rows = [row for title, key, percent in GRADED if (row := _graded_row(models, title, key, percent))]
    tagged = [
        row
        for title, key, percent in GRADED[:2]
        for tag in mapping(models[-1].get("tags"))
        if (row := _graded_row(models, title, key, percent, tag))
    ]
    data, settings = mapping(report.get("data")), mapping(report.get("settings"))
    files = ", ".join(_file(path) for path in data.get("paths") or [])
    drawn = "greedy" if settings.get("temperature") == 0 else f"at temperature {_plain(settings.get('temperature'))}"
    names = [_file(model.get("file", model.get("model"))) for model in models]
    what = f"Replies to {data.get('prompts')} graded prompts ({files}) through llama.cpp, {drawn}, with 95 % intervals:"
    head, numbers = ["", *names], tuple(range(1, len(names) + 1))
    text = f"{what}\n\n{table(head, rows, numbers)}"
    if tagged:
        text += f"\n\n<details><summary>By kind of prompt</summary>\n\n{table(head, tagged, numbers)}\n\n</details>"
    return text


def _graded_row(models: list[dict[str, Any]], title: str, key: str, percent: bool, tag: str | None = None) -> list[str]:
    """One metric of each model, of all prompts or of those with a tag; empty where one has no such figure."""
    parts = [mapping(model.get("overall") if tag is None else mapping(model.get("tags")).get(tag)) for model in models]
    if not all(number(mapping(part.get(key)).get("value")) for part in parts):
        return []
    kind = "" if tag is None else f", {code(tag)}"
    return [f"{title}{kind} ({parts[-1].get('n')})", *(_estimate(mapping(part[key]), percent) for part in parts)]


def _file(path: object) -> str:
    return code(re.split(r"[/\\]", str(path))[-1])


def _estimate(value: dict[str, Any], percent: bool) -> str:
    """A number with its interval."""
    scale, unit = (100, "%") if percent else (1, "")
    text = f"{scale * value['value']:.1f}{unit}"
    if number(value.get("low")) and number(value.get("high")):
        text += f" ({scale * value['low']:.1f} to {scale * value['high']:.1f})"
    return text


def loss_curve(facts: Facts) -> str:
    """The run's picture of its loss, else the loss at a few steps; empty without metrics."""
    if facts.plot is not None:
        return f"![loss by step]({facts.plot.name})"
    lines = [line for line in facts.metrics if number(line.get("loss")) and isinstance(line.get("step"), int)]
    if not lines:
        return ""
    stride = -(-(len(lines) - 1) // 7) or 1
    few = [*lines[:-1][::stride], lines[-1]]
    return table(
        ["step", *(str(line["step"]) for line in few)],
        [["loss, nats a token", *(f"{line['loss']:.3f}" for line in few)]],
    )


def how_trained(facts: Facts) -> str:
    """Method, noise, settings, precision, data: a table; empty where no training is known."""
    manifest, config = facts.manifest, facts.config
    if not config:
        return ""
    lora, results = mapping(config.get("lora")), mapping(manifest.get("results"))
    rows = [
        ["method", f"{method(facts) or config.get('preset')} ({PAPER})" if _noised(facts) else method(facts)],
        ["preset", code(str(config.get("preset")))],
        ["stages before", stages_before(manifest)],
        ["noise", noise(facts)],
        ["loss on", {"assistant": "the assistant's turns only"}.get(str(config.get("loss")), f"{config.get('loss')}")],
        [
            "LoRA",
            f"rank {lora.get('rank')}, alpha {_plain(lora.get('alpha'))}, dropout {_plain(lora.get('dropout'))}, on "
            f"{' and '.join(map(str, lora.get('targets') or []))}" + (", rsLoRA" if lora.get("rslora") else ""),
        ],
        ["trained parameters", f"{manifest['trainable_parameters']:,}" if "trainable_parameters" in manifest else ""],
        [
            "steps",
            f"{results.get('steps', manifest.get('steps'))}, of {config.get('batch_size')} x "
            f"{config.get('gradient_accumulation')} conversations"
            + (f"; the adapter is that of step {results['adapter_step']}" if "adapter_step" in results else ""),
        ],
        [
            "optimizer",
            f"{config.get('optimizer')}, learning rate {_plain(config.get('learning_rate'))} "
            f"({config.get('schedule')}, {config.get('warmup_steps')} steps of warm-up), "
            f"weight decay {_plain(config.get('weight_decay'))}",
        ],
        ["length", f"at most {config.get('max_length')} tokens"],
        ["seed", str(manifest.get("seed", config.get("seed")))],
        ["precision", precision(facts)],
        ["with", _with(manifest)],
    ]
    return table(["", ""], [row for row in rows if row[1]])


def stages_before(manifest: dict[str, Any]) -> str:
    """The trainings that this one went on from, the last first; empty where it began with the base."""
    found = []
    while manifest := mapping(manifest.get("from")):
        kept = f"whose adapter of rank {manifest.get('rank')} is kept and stacked with the new one"
        how = kept if manifest.get("adapter") == "merge" else "whose adapter is trained on"
        found.append(f"{code(str(manifest.get('preset')))} ({manifest.get('steps')} steps), {how}")
    return "; ".join(found)


def noise(facts: Facts) -> str:
    """How much of the user's words really moved."""
    if not _noised(facts):
        return "none"
    settings, measured = mapping(facts.config.get("noise")), mapping(facts.manifest.get("noise"))
    ratios = [f"{float(ratio):.0%}" for ratio in settings.get("ratio") or [] if number(ratio)]
    text = f"at most {' to '.join(ratios)} of the units ({measured.get('unit', settings.get('unit'))}) of "
    text += "every user turn" if settings.get("turns") == "all" else f"the {settings.get('turns')} user turn"
    text += ", a fresh permutation each epoch" if settings.get("per_epoch") else ", one permutation for all epochs"
    text += "; code, formulas, URLs and numbers keep their place" if settings.get("protect") else ""
    if number(settings.get("clean_share")) and settings["clean_share"]:
        text += f"; {settings['clean_share']:.0%} of the conversations left clean"
    if number(measured.get("share_moved")):
        text += f". **Really moved: {measured['share_moved']:.1%}** of {measured.get('units')} units"
    return text


def precision(facts: Facts) -> str:
    """In what the base was held while training, and what that means for the merge."""
    held = mapping(facts.manifest.get("precision"))
    if not held:
        return ""
    text = f"base in {held.get('weights')}, computed in {held.get('compute')}, adapter in {held.get('adapter')}"
    if held.get("weights") == "nf4":
        text += f"; trained on 4-bit weights, merged into the {held.get('merged_into') or '16-bit'} ones"
    return text


def data(facts: Facts) -> str:
    """The files trained on and held out, with their hashes; empty where they are not known."""
    files = [file for file in facts.manifest.get("data") or [] if isinstance(file, dict)]
    rows = [
        [
            _dataset(file),
            "held out" if file.get("use") == "eval" else "trained",
            str(file.get("conversations", "")),
            code(str(file["sha256"])) if file.get("sha256") else "",
        ]
        for file in files
    ]
    if not rows:
        return ""
    held_out = mapping(facts.manifest.get("rows")).get("held_out")
    aside = held_out and not any(file.get("use") == "eval" for file in files)
    note = f"\n\n{held_out} of these conversations were held out: measured on, not trained on." if aside else ""
    return table(["data", "use", "conversations", "SHA-256"], rows, (2,)) + note


def datasets(facts: Facts) -> list[str]:
    """The data sets on the Hub that were trained on."""
    files = [file for file in facts.manifest.get("data") or [] if isinstance(file, dict) and file.get("use") != "eval"]
    return list(dict.fromkeys(str(file["repo"]) for file in files if file.get("repo")))


def _dataset(file: dict[str, Any]) -> str:
    name = str(file.get("name") or str(file.get("path", "")).rpartition("/")[2])
    repo = file.get("repo")
    if not repo:
        return code(name)
    revision = f" at {code(str(file['revision'])[:12])}" if file.get("revision") else ""
    return f"[{repo}](https://huggingface.co/datasets/{repo}){revision}: {code(name)}"


def samples(facts: Facts, shown: int = SHOWN) -> str:
    """Answers before and after, as the run keeps them; empty where it keeps none."""
    chosen = [item for item in facts.samples if item.get("before") is not None and item.get("after") is not None][
        :shown
    ]
    if not chosen:
        return ""
    origin = "held out" if chosen[0].get("held_out") else "from the training data"
    lines = [f"Greedy, not picked; prompts {origin}; `[...]` marks a cut."]
    for item in chosen:
        messages = [message for message in item.get("messages") or [] if isinstance(message, dict)]
        for message in messages:
            lines += [f"**{message.get('role')}**", fenced(_short(str(message.get("content"))))]
        for title, key in (("base", "before"), ("trained", "after")):
            lines += [f"**{title}**", fenced(_short(str(item[key])))]
        lines.append("---")
    return "\n\n".join(lines[:-1])


def limits(facts: Facts) -> str:
    """What to expect to go wrong."""
    lines = []
    if _noised(facts):
        lines.append(
            "Models trained this way are known to loop inside a thought and to carry words of an earlier task into a "
            f"new one (context bleeding); {_loops(facts)}. `ftllm chat` warns of loops."
        )
    if facts.tuned:
        lines.append(
            f"It was trained on {_trained_conversations(facts)} and inherits the knowledge and the faults of its base."
            if _trained_conversations(facts)
            else "It inherits the knowledge and the faults of its base."
        )
    lines.append("Quantization costs accuracy; the table of files says how much.")
    return "\n".join(f"- {line}" for line in lines if line)


def _loops(facts: Facts) -> str:
    """How often it was seen to loop."""
    models = facts.evaluation.get("graded") or [{}]
    overall = mapping(mapping(models[-1]).get("overall"))
    looping = mapping(overall.get("looping")).get("value")
    if not number(looping):
        return "how often this one does was not measured here"
    return f"of {overall.get('n')} graded replies {looping:.1%} looped; context bleeding was not measured"


def _trained_conversations(facts: Facts) -> str:
    count = mapping(facts.manifest.get("rows")).get("training")
    return f"{count} conversations" if isinstance(count, int) and count else ""


def _noised(facts: Facts) -> bool:
    return bool(mapping(facts.manifest.get("noise")).get("moved"))


def _with(manifest: dict[str, Any]) -> str:
    versions = mapping(manifest.get("versions"))
    named = [
        f"{name} {versions[name]}"
        for name in ("ftllm", "torch", "transformers", "peft", "trl", "unsloth")
        if name in versions
    ]
    where = f"backend {manifest['backend']} on {manifest.get('device')}: " if manifest.get("backend") else ""
    return where + ", ".join(named) if named else ""


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[:LONG] + " [...]"


def _plain(value: Any) -> str:
    return f"{value:g}" if number(value) else str(value)
