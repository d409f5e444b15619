"""`--verify full`: the figures of a right file, and faults that only the text shows."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from ftllm.errors import UserError
from ftllm.export import full, heldout, limits
from ftllm.export.full import FullTruth
from ftllm.export.heldout import OWN
from ftllm.export.verifier import Truth
from ftllm.likelihood import torch_likelihood
from ftllm.llama.header import read_header
from ftllm.llama.model import Model
from ftllm.runs import Run


@pytest.fixture(scope="module")
def known(truth: Truth, nano: Path, tmp_path_factory: pytest.TempPathFactory) -> FullTruth:
    """The reference on short conversations of the nano model's own kind."""
    path = tmp_path_factory.mktemp("text") / "heldout.jsonl"
    lines = (nano / "heldout_conversations.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:24]), encoding="utf-8")
    texts = full.read_texts(
        {"path": str(path), "origin": "24 conversations", "max_length": None, "today": "2026-01-01"}, nano, 2
    )
    seen: list[tuple[int, int]] = []
    found = FullTruth.of(texts, truth.reference, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (texts.tokens, texts.tokens)
    return found


def measured(path: Path, quant: str, known: FullTruth) -> tuple[dict[str, Any], list[str]]:
    with Model.load(path, gpu_layers=0) as model:
        return full.measure(model, quant, known, lambda *_: None)


def test_the_likelihood_is_that_of_the_merged_model_in_transformers(known: FullTruth, lora: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(lora.merged, dtype=torch.float32)
    theirs = torch_likelihood(merged, known.texts.rows)
    assert known.likelihood is not None
    assert known.likelihood.tokens == theirs.tokens > 300
    assert known.likelihood.per_token == pytest.approx(theirs.per_token, rel=1e-5)


def test_a_right_file_has_the_reference_s_figures(lora_files: dict[str, Path], known: FullTruth) -> None:
    figures, faults = measured(lora_files["F32"], "F32", known)
    assert faults == []
    assert known.likelihood is not None
    assert figures["nll"] == pytest.approx(known.likelihood.per_token, abs=1e-3)
    assert figures["perplexity"] == pytest.approx(figures["reference_perplexity"], rel=1e-3)
    assert figures["kl_divergence"] < 1e-5
    assert figures["n_ctx"] * figures["chunks"] >= 512
    assert figures["positions"] == figures["chunks"] * (figures["n_ctx"] // 2 - 1)
    lossy, faults = measured(lora_files["Q4_K_M"], "Q4_K_M", known)
    assert faults == []
    assert lossy["reference_nll"] == figures["reference_nll"]
    assert 1e-3 < lossy["kl_divergence"] < 0.3
    quantiles = list(lossy["kl_divergence_quantiles"].values())
    assert quantiles == sorted(quantiles)


def test_a_template_that_renders_otherwise_is_found(
    lora_files: dict[str, Path], known: FullTruth, tmp_path: Path
) -> None:
    """One letter of the template in the file is another: the ids of a conversation are too."""
    path = Path(shutil.copy(lora_files["F32"], tmp_path))
    template = read_header(path).metadata["tokenizer.chat_template"]
    data = path.read_bytes()
    at = data.index(str(template).encode())
    turned = str(template).replace("<start_of_turn>", "<start_of_tur_>", 1)
    path.write_bytes(data[:at] + turned.encode() + data[at + len(turned.encode()) :])
    figures, faults = measured(path, "F32", known)
    assert "nll" not in figures
    assert any("heldout.jsonl:1" in fault for fault in faults), faults


def test_a_likelihood_that_is_off_is_a_fault() -> None:
    assert limits.judge_likelihood("F32", 1.8445, 1.8449) == []
    assert limits.judge_likelihood("Q4_K_M", 1.9, 1.8) == []
    assert limits.judge_likelihood("F32", 1.8545, 1.8445) == [
        "its likelihood is 1.8545 nats a token where transformers gives 1.8445"
    ]


def test_rows_are_those_that_training_measured(nano: Path) -> None:
    from ftllm.vocabulary import from_directory

    vocabulary = from_directory(nano)
    found = heldout.conversations(nano / "heldout_conversations.jsonl")[:8]
    rows = heldout.rows_of(found, vocabulary)
    lengths = sorted(len(row.input_ids) for row in rows)
    assert len(rows) == 8
    shorter = heldout.rows_of(found, vocabulary, max_length=lengths[3])
    assert sorted(len(row.input_ids) for row in shorter) == lengths[:4]
    many = heldout.rows_of(found * 60, vocabulary)
    assert 0.9 * heldout.MOST < sum(len(row.input_ids) for row in many) < 1.1 * heldout.MOST


def test_a_run_is_measured_on_what_it_held_out(nano: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "ft-001")
    run.path.mkdir()
    run.write_manifest({"config": {"max_length": 512}})
    assert heldout.text_of(run).path == heldout.text_of(None).path == OWN
    lines = (nano / "heldout_conversations.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    run.held_out.write_text(lines[0], encoding="utf-8")
    text = heldout.text_of(run)
    assert (text.path, text.origin, text.max_length) == (run.held_out, "conversations held out of ft-001", 512)
    run.held_out.write_text(lines[0][:50], encoding="utf-8")
    with pytest.raises(UserError, match=r"what ft-001 held out cannot be read: .*heldout\.jsonl:1"):
        heldout.text_of(run)


def test_what_training_measured_is_what_base_and_adapter_must_give(known: FullTruth) -> None:
    """Hashes say nothing of a base that was cut into other shards; its likelihood does, where the rows are the same."""
    few = dataclasses.replace(known.texts, rows=known.texts.rows[:3], chunks=[])

    def truth(nll: float, tokens: int) -> FullTruth:
        return FullTruth.of(dataclasses.replace(few, trained=(nll, tokens)), known.reference, lambda *_: None)

    found = truth(0.0, 1).likelihood  # other rows than training's: nothing to compare
    assert found is not None
    assert truth(found.per_token + 0.02, found.tokens).likelihood == found
    with pytest.raises(UserError, match=rf"give {found.per_token:.4f} nats a token on what was held out") as refused:
        truth(found.per_token - 0.2, found.tokens)
    assert "--base" in refused.value.hint


def test_a_run_knows_what_training_measured(nano: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "ft-001")
    run.path.mkdir()
    shutil.copy(nano / "heldout_conversations.jsonl", run.held_out)
    measured_ = {"eval_nll": 0.25, "eval_tokens": 400}
    run.write_manifest({"config": {}, "results": measured_})
    assert heldout.text_of(run).trained == (0.25, 400)
    run.write_manifest({"config": {"load_in_4bit": True}, "results": measured_})  # measured with other weights
    assert heldout.text_of(run).trained is None
    run.write_manifest({"config": {}})
    assert heldout.text_of(run).trained is None


def test_a_model_without_a_template_is_measured_on_plain_text(copy_of_nano: Path, known: FullTruth) -> None:
    (copy_of_nano / "chat_template.jinja").unlink()
    texts = full.read_texts(
        {"path": str(OWN), "origin": "ours", "max_length": None, "today": "2026-01-01"}, copy_of_nano, 2
    )
    assert texts.rows == []
    assert len(texts.chunks) > 4
    assert all(chunk.ids[0] == 2 for chunk in texts.chunks)
    none = FullTruth.of(dataclasses.replace(texts, chunks=texts.chunks[:1]), known.reference, lambda *_: None)
    assert none.likelihood is None
