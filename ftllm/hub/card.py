"""The model card: front matter the Hub validates, and only what was measured or given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftllm import __version__
from ftllm.errors import UserError
from ftllm.hub import files_table, kept
from ftllm.hub import training_card as training
from ftllm.hub.facts import MODELFILE, Facts, Quantization, mapping
from ftllm.hub.markdown import code, fenced, split_front_matter, table
from ftllm.hub.terms import Terms

NAME = "README.md"


@dataclass(frozen=True)
class Page:
    """What one repository's card is about.

    Attributes:
        repo: `user/name`.
        facts: the model, with the files of this repository only.
        sibling: the repository with the other family of quantizations, and what it holds.
        extra: Markdown from `--card-extra`, without its front matter.
        extra_front: its front matter, which wins over ours.
    """

    repo: str
    facts: Facts
    terms: Terms
    endpoint: str
    revision: str = "main"
    adapter: bool = False
    sibling: tuple[str, str] | None = None
    extra: str = ""
    extra_front: dict[str, Any] = field(default_factory=dict)


def read_extra(path: Path) -> tuple[dict[str, Any], str]:
    """`--card-extra`: its front matter and its text.

    Raises:
        UserError: it cannot be read, or its front matter is not YAML.
    """
    try:
        front, body = split_front_matter(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise UserError(f"--card-extra {path} cannot be read: {error}", "give a Markdown file in UTF-8") from None
    except ValueError as error:
        raise UserError(
            f"{path}: its front matter is not YAML: {error}", "correct what stands between the --- lines"
        ) from None
    return front, body.strip()


def render(page: Page, before: str | None = None) -> str:
    """The card's text, with what people wrote into the card that is on the Hub.

    Raises:
        UserError: the front matter is not what huggingface_hub takes.
    """
    from huggingface_hub import ModelCard, ModelCardData

    front, body = kept.join(front_matter(page), "\n\n".join(_sections(page)), before)
    try:
        text = f"---\n{ModelCardData(**front, ignore_metadata_errors=False).to_yaml()}\n---\n\n{body}"
        ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"the card of {page.repo} has wrong metadata: {error}", "correct it in --card-extra, or on the Hub"
        ) from None
    return text


def front_matter(page: Page) -> dict[str, Any]:
    """The card's metadata."""
    facts, terms = page.facts, page.terms
    vision = any("mmproj" in path.name for path in facts.others)
    tags = ["ftllm"]
    if page.adapter:
        tags += ["lora", "peft"]
    else:
        tags += ["gguf", "llama.cpp", "conversational"]
        tags += ["imatrix"] if any(item.imatrix for item in facts.quantizations) else []
    if facts.config.get("preset") in ("ft", "seed"):
        tags += ["fragmented-training"]
    relation = "adapter" if page.adapter else "finetune" if facts.tuned else "quantized"
    values = {
        "base_model": facts.base_repo,
        "base_model_relation": relation if facts.base_repo else None,
        "library_name": "peft" if page.adapter else "gguf",
        "pipeline_tag": "image-text-to-text" if vision else "text-generation",
        "language": terms.language,
        **terms.license,
        **terms.gate,
        "datasets": training.datasets(facts),
        "tags": tags,
        "quantized_by": None if page.adapter else page.repo.partition("/")[0],
        **page.extra_front,
    }
    return {key: value for key, value in values.items() if value not in (None, [], "")}


def _sections(page: Page) -> Iterator[str]:
    facts = page.facts
    yield f"# {page.repo.partition('/')[2]}\n\n{_introduction(page)}"
    if page.extra:
        yield page.extra
    if page.adapter:
        yield f"## Use\n\n{_use_adapter(page)}"
    else:
        yield f"## Files\n\n{_files(page)}"
        yield f"## Use\n\n{_use_models(page)}"
    titled = {
        "Did it work?": training.did_it_work(facts),
        "Training": training.how_trained(facts),
        "Data": training.data(facts),
        "Samples": training.samples(facts),
        "Limits": training.limits(facts),
        "License and terms": _license(page),
        "Provenance": _provenance(facts),
    }
    for title, text in titled.items():
        if text:
            yield f"## {title}\n\n{text}"


def _introduction(page: Page) -> str:
    facts = page.facts
    base = (
        f"[{facts.base_repo}]({page.endpoint}/{facts.base_repo})"
        if facts.base_repo
        else code(facts.base_name or "its base")
    )
    header = facts.header
    weights = facts.quantizations[0].parameters if facts.quantizations else 0
    size = f" {_count(weights)} parameters, {header.architecture}." if header and weights else ""
    context = f" Context: {header.n_ctx_train} tokens." if header and header.n_ctx_train else ""
    how = training.method(facts)
    made = f"{base}, fine-tuned ({how})" if how else f"{base}, fine-tuned" if facts.tuned else base
    what = f"A LoRA adapter for {made}" if page.adapter else f"GGUF files of {made}"
    text = f"{what}. Made with ftllm {__version__}.{size}{context}"
    if page.sibling:
        text += f"\n\n{page.sibling[1]}: [{page.sibling[0]}]({page.endpoint}/{page.sibling[0]})."
    return text


def _count(weights: int) -> str:
    return f"{weights / 1e9:.3g} billion" if weights >= 1e9 else f"{weights / 1e6:.3g} million"


def _files(page: Page) -> str:
    items = page.facts.quantizations
    parts = [
        files_table.recommendation(items),
        files_table.files_table(items, page.repo, page.revision, page.endpoint),
        files_table.how_measured(items),
        _other_files(page),
    ]
    return "\n\n".join(part for part in parts if part)


def _other_files(page: Page) -> str:
    known = {"mmproj": "the vision projector", "imatrix": "the importance matrix", "Modelfile": "for `ollama create`"}
    named = [
        f"{code(path.name)} ({next((text for key, text in known.items() if key in path.name), 'for Ollama')})"
        for path in page.facts.others
        if path.name != MODELFILE or any(len(item.paths) == 1 for item in page.facts.quantizations)
    ]
    return f"Beside them: {', '.join(named)}." if named else ""


def _use_models(page: Page) -> str:
    items = page.facts.quantizations
    parts = []
    for title, words, lines in files_table.commands(items, page.repo):
        parts.append("\n\n".join([f"**{title}**" + (f": {words}" if words else ""), fenced(lines, "sh")]))
    whole = [item for item in items if len(item.paths) == 1]
    if whole:
        best = files_table.recommended(whole) or whole[0]
        lines = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{page.repo}", gguf_file="{best.name}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{page.repo}", gguf_file="{best.name}")'
        )
        parts.append("**transformers** (unpacks the weights; not every architecture)\n\n" + fenced(lines, "python"))
    return "\n\n".join(parts)


def _use_adapter(page: Page) -> str:
    base = page.facts.base_repo
    named = f'"{base}"' if base else "base  # the directory or repository of " + (page.facts.base_name or "the base")
    python = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({named})\n"
        f'model = PeftModel.from_pretrained(model, "{page.repo}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{page.repo}")'
    )
    shell = f"hf download {page.repo} --local-dir adapter\nftllm export adapter --quant Q4_K_M"
    return f"**transformers and peft**\n\n{fenced(python, 'python')}\n\n**GGUF files of it**\n\n{fenced(shell, 'sh')}"


def _license(page: Page) -> str:
    facts, terms = page.facts, page.terms
    given = page.extra_front.get("license") or terms.license.get("license")
    name = page.extra_front.get("license_name") or terms.license.get("license_name")
    link = page.extra_front.get("license_link") or terms.license.get("license_link")
    base = code(facts.base_repo or facts.base_name or "the base")
    if not given:
        return f"A model made from another stays under that one's license. What {base} says about it was not found."
    shown = str(name or given)
    parts = [f"{'[' + shown + '](' + str(link) + ')' if link else code(shown)}."]
    if terms.origin:
        parts[0] += f" It is the license of {base}, which what is made from it carries on."
    prompt = terms.gate.get("extra_gated_prompt")
    if isinstance(prompt, str):
        parts.append(f"Whoever takes {base} is asked to accept this:\n\n" + fenced(prompt, "text"))
    if terms.files:
        parts.append(
            "Its files are here too: " + ", ".join(f"[{path.name}]({path.name})" for path in terms.files) + "."
        )
    parts += [_quoted(section) for section in terms.sections]
    return "\n\n".join(parts)


def _quoted(section: str) -> str:
    """A section of the base's card, as a quotation: its headings make no sections of ours."""
    return "\n".join(f"> {line}".rstrip() for line in section.split("\n"))


def _provenance(facts: Facts) -> str:
    source, recorded = mapping(facts.entry.get("source")), mapping(facts.manifest.get("base"))
    files = recorded.get("files") or source.get("base_files") or {}
    converter = mapping(facts.entry.get("converter"))
    rows = [
        [
            "base",
            f"{facts.base_repo or facts.base_name}"
            + (f" at {code(str(recorded['revision']))}" if recorded.get("revision") else ""),
        ]
    ]
    rows += (
        [[f"base, {code(str(name))}", code(str(value))] for name, value in sorted(files.items())]
        if isinstance(files, dict)
        else []
    )
    if source.get("adapter_sha256"):
        rows.append(["adapter, `adapter_model.safetensors`", code(str(source["adapter_sha256"]))])
    if converter.get("llama_cpp_python"):
        rows.append(["converted and quantized by", f"llama.cpp as in llama-cpp-python {converter['llama_cpp_python']}"])
    rows += [
        [code(item.name), code(str(item.entry["sha256"]))] for item in facts.quantizations if item.entry.get("sha256")
    ]
    hashes = table(["", "SHA-256 or version"], rows)
    return (
        f"<details><summary>Hashes and versions of what this was made from</summary>\n\n{hashes}\n\n</details>"
        if len(rows) > 1
        else ""
    )


def split_families(items: tuple[Quantization, ...]) -> tuple[tuple[Quantization, ...], tuple[Quantization, ...]]:
    """Static quantizations, and those made with an importance matrix."""
    return tuple(item for item in items if not item.imatrix), tuple(item for item in items if item.imatrix)
