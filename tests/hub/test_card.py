"""The model card: what the Hub validates, what was measured, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_repos import complaints
from hub_run import write_gguf
from hub_server import Hub
from huggingface_hub import ModelCard

from ftllm.data.sources import DataFile, FileFacts, record
from ftllm.errors import UserError
from ftllm.hub import card, facts
from ftllm.hub.card import Page, read_extra, render
from ftllm.hub.facts import Facts, Quantization
from ftllm.hub.files_table import recommendation, recommended, size
from ftllm.hub.markdown import split_front_matter, split_sections
from ftllm.hub.terms import Terms, of_base
from ftllm.hub.terms import read as read_terms
from ftllm.runs import Run

HUB = "https://huggingface.co"


@pytest.fixture
def page(run: Run, base: Path) -> Page:
    return Page("owner/think-GGUF", facts.of_models(str(run.path)), of_base(base, None), HUB)


def sections(text: str) -> dict[str, str]:
    return dict(split_sections(split_front_matter(text)[1]))


def test_front_matter(page: Page) -> None:
    text = render(page)
    found = ModelCard(text).data.to_dict()
    assert found == {
        "base_model": "org/gemma",
        "base_model_relation": "finetune",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "language": ["en", "de"],
        "license": "gemma",
        "extra_gated_prompt": "Do you agree to be good?",
        "tags": ["ftllm", "gguf", "llama.cpp", "conversational", "fragmented-training"],
        "quantized_by": "owner",
    }
    assert complaints(text) == []


def test_the_hub_validates_it(at_hub: Hub, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """By huggingface_hub's own check, which in version 1 insists on the address of the real Hub."""
    from huggingface_hub import get_session

    session = get_session()
    real = session.post
    monkeypatch.setattr(session, "post", lambda url, **values: real(url.replace(HUB, at_hub.url), **values))
    ModelCard(render(page)).validate()
    ModelCard(render(replace(page, adapter=True))).validate()
    wrong = replace(page, extra_front={"license": "mine"})
    with pytest.raises(ValueError, match="license"):
        ModelCard(render(wrong)).validate()
    assert len(at_hub.asked("POST /api/validate-yaml")) == 3


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"adapter": True}, "base_model_relation", "adapter"),
        ({"adapter": True}, "library_name", "peft"),
        ({"extra_front": {"language": "fr", "datasets": ["org/d"]}}, "language", "fr"),
        ({"extra_front": {"license": "mit"}}, "license", "mit"),
    ],
)
def test_front_matter_follows(page: Page, change: dict[str, object], key: str, value: object) -> None:
    assert card.front_matter(replace(page, **change))[key] == value  # type: ignore[arg-type]


def test_a_model_that_was_only_quantized(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m-Q4_K_M.gguf", "Q4_K_M", general__base_model__0__repo_url=f"{HUB}/org/m")
    page = Page("owner/m-GGUF", facts.of_models(str(path.parent)), Terms(), HUB)
    found = card.front_matter(page)
    assert (found["base_model"], found["base_model_relation"]) == ("org/m", "quantized")
    text = sections(render(page))
    assert not set(text) & {"Training", "Data", "Samples", "Did it work?"}
    assert "were not compared with the unquantized model" in text["Files"]
    assert "was not found" in text["License and terms"]
    assert "fine-tuned" not in render(page)


def test_data_sets_on_the_hub_are_named(page: Page, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    file = DataFile(tmp_path / "train.jsonl", "org/data/train.jsonl", "org/data", "c0ffee")
    data = [record(file, FileFacts(), "data"), record(replace(file, repository="org/other"), FileFacts(), "eval")]
    page = replace(page, facts=replace(page.facts, manifest={**page.facts.manifest, "data": data}))
    assert card.front_matter(page)["datasets"] == ["org/data"]
    assert "[org/data](https://huggingface.co/datasets/org/data) at `c0ffee`" in sections(render(page))["Data"]


def test_the_table_of_files(page: Page) -> None:
    rows = [line for line in sections(render(page))["Files"].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == [
        "Link",
        "Type",
        "Size/GB",
        "bits per weight",
        "KL divergence",
        "same top token",
        "likelihood",
        "notes",
    ]
    assert [row[1] for row in cells[2:]] == ["Q2_K", "Q4_K_M", "Q8_0"]  # by size
    link = f"[gemma-think-Q4_K_M.gguf]({HUB}/owner/think-GGUF/resolve/main/gemma-think-Q4_K_M.gguf)"
    assert cells[3] == [link, "Q4_K_M", "3.51e-05", "8.50", "0.0312", "83.3%", "", "recommended"]
    assert "over 336 positions of seven conversations" in sections(render(page))["Files"]


def quantization(kind: str, bytes_: int, divergence: float | None) -> Quantization:
    entry = {} if divergence is None else {"verification": {"kl_divergence": divergence}}
    return Quantization((Path(f"m-{kind}.gguf"),), kind, bytes_, 4.0, False, entry=entry)


@pytest.mark.parametrize(
    ("figures", "taken", "says"),
    [
        ({"Q2_K": 0.25, "Q4_K_M": 0.03, "Q8_0": 0.001}, "Q4_K_M", "the smallest of these files whose KL divergence"),
        ({"Q2_K": 0.25, "Q3_K_M": 0.09}, "Q3_K_M", "loses least of these files, yet not little"),
        ({"Q4_K_M": None, "Q8_0": 0.001}, "Q8_0", "the smallest of these files"),
        ({"Q4_K_M": None}, None, ""),
    ],
)
def test_the_recommendation_is_drawn_from_the_figures(
    figures: dict[str, float | None], taken: str | None, says: str
) -> None:
    items = [quantization(kind, number, figure) for number, (kind, figure) in enumerate(figures.items(), 1)]
    best = recommended(items)
    assert (best.type if best else None) == taken
    assert says in recommendation(items)
    assert bool(recommendation(items)) == bool(says)


@pytest.mark.parametrize(
    ("count", "text"), [(2_489_757_760, "2.49"), (26_000_000_000, "26"), (130e9, "130"), (5e6, "0.005")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(int(count)) == text


def test_what_was_measured_and_given_is_there(page: Page) -> None:
    text = sections(render(page))
    assert "| negative log-likelihood per assistant token, nats | 0.9063 | 0.0402 | -0.8661 |" in text["Did it work?"]
    assert "On 12 held-out conversations (4097 assistant tokens)" in text["Did it work?"]
    assert "![loss by step](loss.svg)" in text["Did it work?"]
    assert "**Really moved: 23.8%** of 2362 units" in text["Training"]
    assert "rank 16, alpha 32, dropout 0, on attention and mlp" in text["Training"]
    assert "trained on 4-bit weights, merged into the 16-bit ones" in text["Training"]
    assert "0.0164 million parameters, llama." in text["think-GGUF"]
    assert "It was trained on 236 conversations" in text["Limits"]
    assert f"| `data.jsonl` | trained | 248 | `{'d' * 64}` |" in text["Data"]
    assert "<think>2+2</think>4" in text["Samples"]
    assert "`a" in text["Provenance"]
    assert "c0ffee" in text["Provenance"]
    for command in ("ftllm chat", "llama-cli -hf", "ollama run hf.co/"):
        assert f"{command.rstrip('/')}" in text["Use"]
        assert "owner/think-GGUF:Q4_K_M" in text["Use"]


def test_graded_replies_are_shown_with_their_intervals(page: Page) -> None:
    def graded(name: str, right: float, thinks: float) -> dict[str, Any]:
        part: dict[str, Any] = {"n": 8, "looping": {"value": 0.25, "low": 0.1, "high": 0.4}}
        part |= {"accuracy": {"value": right, "low": 0.2, "high": 0.9}, "think_rate": {"value": thinks}}
        return {"model": name, "file": f"/home/me/{name}.gguf", "overall": part, "tags": {"hard": part}}

    report = {
        "data": {"paths": ["/home/me/held.jsonl"], "prompts": 8},
        "settings": {"temperature": 0.0},
        "graded": [graded("base", 0.25, 0.0), graded("think", 0.75, 1.0)],
    }
    text = sections(render(replace(page, facts=replace(page.facts, evaluation=report))))
    assert "Replies to 8 graded prompts (`held.jsonl`) through llama.cpp, greedy" in text["Did it work?"]
    assert "|  | `base.gguf` | `think.gguf` |" in text["Did it work?"]
    assert "| right (8) | 25.0% (20.0 to 90.0) | 75.0% (20.0 to 90.0) |" in text["Did it work?"]
    assert "| thinks first, `hard` (8) | 0.0% | 100.0% |" in text["Did it work?"].partition("<details>")[2]
    assert "loop, `hard`" not in text["Did it work?"]
    assert "of 8 graded replies 25.0% looped" in text["Limits"]
    assert "was not measured here" in sections(render(page))["Limits"]


def test_worse_is_called_worse(page: Page) -> None:
    results = {"eval_before": 0.5, "eval_nll": 0.6, "eval_tokens": 9}
    page = replace(page, facts=replace(page.facts, manifest={**page.facts.manifest, "results": results}))
    assert "made them less likely" in sections(render(page))["Did it work?"]


def test_without_a_picture_the_loss_is_a_table(page: Page, run: Run) -> None:
    (run.path / "loss.svg").unlink()
    text = sections(render(page))["Did it work?"]
    assert "| step | 1 | 4 | 7 | 10 | 13 | 16 | 19 | 20 |" in text
    assert "| loss, nats a token | 2.000 | 0.500 |" in text


def test_the_terms_of_the_base_are_carried_over(page: Page) -> None:
    text = sections(render(page))["License and terms"]
    assert text.startswith("## License and terms\n\n`gemma`. It is the license of `org/gemma`")
    assert "Do you agree to be good?" in text
    assert "> ## Terms of use\n>\n> Use it well.\n>\n> ### Details\n>\n> Very well." in text
    assert "Benchmarks" not in text
    assert "[LICENSE](LICENSE)" in text


def test_terms_from_the_hub(at_hub: Hub) -> None:
    front = b"---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n"
    readme = front + b"# A\n\n# Disclaimer and User Agreement\n\nYes.\n"
    at_hub.add(
        "org/a", {"README.md": readme, "LICENSE": b"Law.\n", "USE_POLICY.md": b"Be good.\n", "model.safetensors": b""}
    )
    found = of_base(None, "org/a")
    assert found.license == {"license": "other", "license_name": "ours", "license_link": "LICENSE"}
    assert found.sections == ("# Disclaimer and User Agreement\n\nYes.",)
    assert [path.name for path in found.files] == ["LICENSE", "USE_POLICY.md"]
    assert of_base(None, "org/a", offline=True).license == found.license
    assert of_base(None, "org/none") == of_base(None, None) == Terms()


def test_a_card_with_broken_front_matter_still_has_terms() -> None:
    assert read_terms("---\n: [\n---\n## License\n\nMIT\n", (), "x").sections == ("## License\n\nMIT",)


def test_card_extra(page: Page, tmp_path: Path) -> None:
    extra = tmp_path / "extra.md"
    extra.write_text("---\ntags: [mine]\n---\n## Why\n\nBecause.\n")
    front, body = read_extra(extra)
    text = render(replace(page, extra=body, extra_front=front))
    assert ModelCard(text).data.tags == ["mine"]
    assert list(sections(text))[:3] == ["think-GGUF", "Why", "Files"]
    extra.write_text("---\ntags: [\n---\n")
    with pytest.raises(UserError, match="front matter is not YAML"):
        read_extra(extra)
    extra.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        read_extra(extra)
    with pytest.raises(UserError, match="cannot be read"):
        read_extra(tmp_path / "none.md")


def test_metadata_that_the_client_refuses(page: Page) -> None:
    with pytest.raises(UserError, match="wrong metadata"):
        render(replace(page, extra_front={"model-index": [{"name": 1}]}))


def edited(text: str, before: str, after: str) -> str:
    assert text.count(before) == 1, before
    return text.replace(before, after)


def test_the_own_section_is_kept(page: Page) -> None:
    first = render(page)
    assert render(page, first) == first
    theirs = edited(
        first,
        "*(Nothing yet. Edit this card on the Hub: this section is kept when the model is pushed again.)*",
        "I like it.\r\n\r\n## Mine\r\n\r\n1",
    )
    other = replace(page, facts=replace(page.facts, quantizations=page.facts.quantizations[:1]))
    second = render(other, theirs)
    assert "I like it.\n\n## Mine\n\n1" in second
    assert "Nothing yet" not in second
    assert "gemma-think-Q8_0.gguf" not in second
    assert render(other, second) == second


def test_what_was_edited_elsewhere_moves_into_the_own_section(page: Page) -> None:
    first = render(page)
    theirs = edited(first, "## Limits\n\n", "## Limits\n\n- It cannot swim.\n")
    theirs = edited(theirs, "## Training\n", "## Added by hand\n\nHello.\n\n## Training\n")
    second = render(page, theirs)
    generated, _, own = second.partition("<!-- ftllm: what stands from here on is yours")
    assert "swim" not in generated
    assert "- It cannot swim." in own
    assert "## Added by hand\n\nHello." in own
    assert render(page, second) == second


def test_edited_metadata_is_kept(page: Page) -> None:
    front, body = split_front_matter(render(page))
    front |= {"license": "apache-2.0", "tags": ["ftllm", "funny"], "thumbnail": "a.png"}
    del front["pipeline_tag"]
    theirs = f"---\n{yaml.safe_dump(front)}---\n{body}"
    other = replace(page, extra_front={"language": "it"})
    found = ModelCard(render(other, theirs)).data.to_dict()
    assert (found["license"], found["tags"], found["thumbnail"]) == ("apache-2.0", ["ftllm", "funny"], "a.png")
    assert "pipeline_tag" not in found
    assert found["language"] == "it"


def test_a_card_written_by_hand_is_kept_whole(page: Page) -> None:
    theirs = "---\nlicense: mit\ntags: [art]\n---\n# My model\n\nWritten by me.\n\n## More\n\nText.\n"
    text = render(page, theirs)
    own = text.partition("<!-- ftllm: what stands from here on is yours")[2]
    assert "# My model\n\nWritten by me.\n\n## More\n\nText." in own
    found = ModelCard(text).data.to_dict()
    assert found["license"] == "mit"
    assert found["tags"][:2] == ["art", "ftllm"]


def test_text_of_the_model_is_not_read_as_markdown(page: Page) -> None:
    samples = [
        {"held_out": True, "messages": [{"role": "user", "content": "```\n# no"}], "before": "````", "after": "<b>"}
    ]
    text = render(replace(page, facts=replace(page.facts, samples=tuple(samples))))
    assert "no" not in "".join(sections(text))
    assert "````\n```\n# no\n````" in text
    assert "`````\n````\n`````" in text


def test_facts_of_a_run_from_a_directory_elsewhere(run: Run, tmp_path: Path) -> None:
    """export.json names the adapter, and the run is taken where that is still the same."""
    elsewhere = tmp_path / "elsewhere"
    run.gguf.rename(elsewhere)
    assert facts.of_models(str(elsewhere)).run is None  # the recorded hash is not the adapter's
    from ftllm.files import sha256_file

    record = json.loads((elsewhere / "export.json").read_text())
    for entry in record["files"].values():
        entry["source"]["adapter_sha256"] = sha256_file(run.adapter / "adapter_model.safetensors")
    (elsewhere / "export.json").write_text(json.dumps(record))
    found = facts.of_models(str(elsewhere))
    assert found.run == run
    assert found.name == "gemma-think"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nothing", "no run or directory called"),
        ("empty", "holds no GGUF to publish"),
        ("broken", "is not what `ftllm export` writes"),
    ],
)
def test_what_cannot_be_published(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_gguf(Path("broken/m-Q8_0.gguf"), "Q8_0")
    Path("broken/export.json").write_text('{"files": [')
    with pytest.raises(UserError, match=re.escape(says)):
        facts.of_models(given)
    with pytest.raises(UserError):
        facts.of_adapter(given)
    write_gguf(run.gguf / "big-Q8_0-00001-of-00003.gguf", "Q8_0")
    with pytest.raises(UserError, match="has 1 of its 3 shards"):
        facts.of_models(None, tmp_path / "runs")


def test_only_facts(run: Run) -> None:
    """Damaged or missing parts of a run leave gaps in the card, no errors."""
    (run.path / "samples.json").write_text("{")
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    run.write_manifest({"config": [], "base": None, "data": {}, "results": 3, "noise": "x"})
    page = Page("owner/a-GGUF", facts.of_models(str(run.path)), Terms(), HUB)
    assert isinstance(page.facts, Facts)
    text = render(page)
    assert not set(sections(text)) & {"Training", "Data", "Samples"}
    assert "None" not in text
