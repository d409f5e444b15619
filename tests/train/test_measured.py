"""Measured while it trains: the likelihood, early stopping, the best adapter, the plot, the report, the answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from trainings import Trainer, adapter_hashes, impatient, without_timings

from ftllm.likelihood import torch_likelihood
from ftllm.progress import Reporter
from ftllm.runs import Run
from ftllm.train.config import resolve
from ftllm.train.corpus import load_corpus
from ftllm.train.data import Rows
from ftllm.train.interrupt import Interrupted
from ftllm.train.metrics import read
from ftllm.train.plot import STYLE, curve
from ftllm.train.report import _fenced
from ftllm.train.settings import read_yaml
from ftllm.train.stage import resume
from ftllm.vocabulary import from_directory

# Too high a rate for ever falling: the third measurement is worse than the second.
OVERSHOOTING = {"eval": "25%", "schedule": "constant", "learning_rate": 2e-2, "eval_steps": 3, "epochs": 10}


def nats(run: Run) -> dict[int, float]:
    return {line["step"]: line["eval_nll"] for line in read(run.metrics) if "eval_nll" in line}


def test_training_stops_early_and_keeps_the_best_adapter(trained: Trainer, tiny: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = trained("early", patience=1, **OVERSHOOTING)
    measured = nats(result.run)
    best = min(measured, key=measured.__getitem__)
    assert list(measured) == list(range(3, result.steps + 1, 3))
    assert best == result.adapter_step == result.steps - 3 < 27
    assert result.eval_after == measured[best]
    manifest = result.run.read_manifest()
    assert (manifest["results"]["steps"], manifest["steps"]) == (result.steps, 30)
    # The adapter is that of the best step: as plain peft measures it, and as a training of that many steps has it.
    config = resolve([read_yaml(result.run.config)])
    held_out = Rows(config, load_corpus(config), from_directory(tiny)).held_out()
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, result.run.adapter)
    assert torch_likelihood(tuned, held_out).per_token == pytest.approx(measured[best], rel=1e-6)
    straight = trained("straight", **{**OVERSHOOTING, "max_steps": best})
    assert adapter_hashes(straight.run) == adapter_hashes(result.run)
    report = (result.run.path / "REPORT.md").read_text()
    assert f"The adapter is that of step {best}, the best measured; the last was step {result.steps}." in report
    assert f"Training stopped early, after {result.steps} of 30 steps." in report
    last = trained("last", patience=1, keep="last", **OVERSHOOTING)
    assert (last.steps, last.adapter_step) == (result.steps, result.steps)
    assert adapter_hashes(last.run) != adapter_hashes(result.run)


def test_interrupted_after_the_best_step_it_stops_early_at_the_same_step(trained: Trainer) -> None:
    whole = trained("whole", patience=1, **OVERSHOOTING)
    with pytest.raises(Interrupted):
        trained("cut", impatient(whole.adapter_step), patience=1, **OVERSHOOTING)
    run = Run(trained.runs / "cut")
    result = resume(run, Reporter(quiet=True))
    assert (result.steps, result.adapter_step) == (whole.steps, whole.adapter_step)
    assert adapter_hashes(run) == adapter_hashes(whole.run)
    assert without_timings(run) == without_timings(whole.run)
    assert (run.path / "loss.svg").read_text() == (whole.run.path / "loss.svg").read_text().replace("whole", "cut")


def test_answers_before_and_after_are_the_models_own(trained: Trainer, tiny: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = trained("a", eval="25%", epochs=2, samples=2, sample_tokens=6)
    samples = json.loads((result.run.path / "samples.json").read_text())
    assert len(samples) == 2
    config = resolve([read_yaml(result.run.config)])
    corpus, vocabulary = load_corpus(config), from_directory(tiny)
    assert [sample["source"] for sample in samples] == [corpus.held_out[0].source, corpus.held_out[2].source]
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    report = (result.run.path / "REPORT.md").read_text()
    for when in ("before", "after"):
        if when == "after":
            model = PeftModel.from_pretrained(model, result.run.adapter)
        for sample in samples:
            ids = vocabulary.tokenizer.apply_chat_template(
                sample["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )["input_ids"]
            prompt = ids.shape[1]
            for _ in range(6):  # greedy, by hand
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
            assert sample[when] == vocabulary.tokenizer.decode(ids[0, prompt:]) + " [...]"
            assert sample[when] in report
    assert "prompts held out" in report
    assert re.search(r"\| peak memory \| \d+ MiB \(\d+ were expected", report)


def test_without_held_out_rows_the_report_says_so(trained: Trainer) -> None:
    result = trained("a", max_steps=2, samples=1, sample_tokens=2)
    report = (result.run.path / "REPORT.md").read_text()
    assert "Nothing was held out" in report
    assert "from the training data" in report
    assert result.adapter_step == 2


def test_plot_shows_what_was_measured() -> None:
    picture = curve("a <b>", [(1, 2.0), (2, 1.0), (3, float("nan"))], [(1, 2.0), (2, 1.5)], [(0, 3.0), (2, 1.5)])
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    lines = {line.get("class"): line.get("points", "").split() for line in root.iter(f"{space}polyline")}
    assert {name: len(points) for name, points in lines.items()} == {"raw": 2, "smooth": 2, "held": 2}
    # The tops and the halves, measured on the axis: 3.0 is twice as far from 0 as 1.5.
    floor = next(float(line.get("y1", 0)) for line in root.iter(f"{space}line") if line.get("class") == "axis")
    high, low = (floor - float(point.split(",")[1]) for point in lines["held"])
    assert high == pytest.approx(2 * low, abs=0.2)
    assert next(root.iter(f"{space}text")).text == "a <b>"
    assert "prefers-color-scheme: dark" in picture
    assert "best: 1.5000 at step 2" in picture
    assert ElementTree.fromstring(curve("none", [], [], [])) is not None


def test_answers_cannot_break_out_of_the_report() -> None:
    text = "# no heading\n```\n<script>\n````\n"
    lines = list(_fenced(text))
    assert lines[0] == lines[-1] == "`````"
    assert not re.search("`{5}", text)


@pytest.mark.parametrize("dark", [False, True])
def test_the_plot_can_be_read_on_light_and_dark_pages(dark: bool) -> None:
    """Contrasts as WCAG 2 defines and asks for: 4.5 of text, 3 of lines; on paper that is drawn, whatever is below."""
    light_style, _, dark_style = STYLE.partition("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"\.?(\w+) \{[^}]*?(?:fill|stroke): (#\w{6})", light_style))
    if dark:
        colours |= dict(re.findall(r"\.?(\w+) \{[^}]*?(?:fill|stroke): (#\w{6})", dark_style))

    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(name: str, other: str) -> float:
        low, high = sorted((luminance(colours[name]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    assert contrast("paper", "paper") == 1
    assert all(contrast(name, "paper") >= 4.5 for name in ("text", "title"))
    assert all(contrast(name, "paper") >= 3 for name in ("raw", "smooth", "held", "dot", "best"))
    assert contrast("raw", "smooth") > 1.4
    picture = ElementTree.fromstring(curve("a", [(1, 2.0), (2, 1.0)], [], []))
    paper = next(part for part in picture if part.get("class") == "paper")
    assert (paper.get("width"), paper.get("height")) == (picture.get("width"), picture.get("height"))
