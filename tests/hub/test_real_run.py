"""What training, export and eval really leave, on the Hub; only the importance matrix is made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hub_repos import complaints
from hub_server import Hub
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from ftllm.cli.main import build
from ftllm.export import importance
from ftllm.export.pipeline import ExportRequest, export
from ftllm.files import sha256_file
from ftllm.hub.markdown import split_front_matter, split_sections
from ftllm.hub.push import PushRequest, push
from ftllm.progress import Reporter
from ftllm.runs import Run

NANO = Path(__file__).parents[2] / "models" / "nano"


KEPT = ("README", "config", "generation_config", "chat_template", "model")


def command(*arguments: str) -> None:
    done = CliRunner().invoke(build(arguments), list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output


def even_importance(path: Path) -> Path:
    """An importance matrix that finds all weights of nano's layers equally important."""
    config = json.loads((NANO / "config.json").read_text())
    columns = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"), config["hidden_size"])
    columns["attn_output"] = config["num_attention_heads"] * config["head_dim"]
    columns["ffn_down"] = config["intermediate_size"]
    shapes = {
        f"blk.{layer}.{name}.weight": (1, width)
        for layer in range(config["num_hidden_layers"])
        for name, width in columns.items()
    }
    ones = {name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()}
    counts = {name: np.ones(1, dtype=np.float32) for name in shapes}
    importance.save(path, ones, counts, dataset="nothing", chunks=1, chunk_size=512)
    return path


@pytest.mark.slow  # three programs that import torch
def test_a_run_from_the_hub_back_to_the_hub(
    owner: Hub, reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = (NANO / "ft.jsonl").read_bytes().splitlines(keepends=True)
    data = owner.add("lab/sums", {"train.jsonl": b"".join(rows[:20])}, type="dataset")
    files = [path for path in NANO.iterdir() if "token" in path.name or path.stem in KEPT]
    base = owner.add("lab/nano", {path.name: path.read_bytes() for path in files})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b"".join((NANO / "heldout.jsonl").read_bytes().splitlines(keepends=True)[:3]))
    training = ["--model", "lab/nano", "--data", "lab/sums", "--eval", "10%", "--name", "think"]
    command("train", *training, "--set", "max_steps=2", "--quiet")
    run = Run(tmp_path / "runs" / "think")
    run.gguf.mkdir()
    matrix = even_importance(run.gguf / "nano.imatrix.gguf")
    quants = ["Q8_0", "IQ4_XS"]  # the first takes no importance matrix
    export(ExportRequest("think", quants, imatrix=str(matrix), split_max_size="3M", verify="full"), reporter)
    command("eval", "think", "--data", str(prompts), "--max-tokens", "40", "--quiet")

    push(PushRequest("owner/think", "think", both=True), reporter)
    static, weighted = owner.repo("owner/think-GGUF").files, owner.repo("owner/think-i1-GGUF").files
    shards = sorted(path.name for path in run.gguf.glob("nano-think-Q8_0-*.gguf"))
    assert len(shards) > 1
    assert [name for name in sorted(static) if name.endswith(".gguf")] == shards
    others = {path.name for path in run.gguf.glob("nano-think-IQ4_XS*.gguf")}
    assert {name for name in weighted if name.endswith(".gguf")} == {*others, matrix.name}
    for name in (*shards, "loss.svg"):
        path = run.path / name if name == "loss.svg" else run.gguf / name
        assert static[name] == path.read_bytes()

    text = static["README.md"].decode()
    assert complaints(text) == []
    front = ModelCard(text).data.to_dict()
    assert (front["base_model"], front["datasets"]) == ("lab/nano", ["lab/sums"])
    parts = dict(split_sections(split_front_matter(text)[1]))
    train_file = sha256_file(Path(run.read_manifest()["data"][0]["path"]))
    assert f"[lab/sums](https://huggingface.co/datasets/lab/sums) at `{data.branches['main'][:12]}`" in parts["Data"]
    assert "2 of these conversations were held out" in parts["Data"]
    assert "It was trained on 18 conversations" in parts["Limits"]
    assert "0.00525 billion" not in text
    assert "5.25 million parameters, gemma3." in parts["think-GGUF"]
    assert f"`train.jsonl` | trained | 20 | `{train_file}`" in parts["Data"]
    assert f"lab/nano at `{base.branches['main']}`" in parts["Provenance"]
    assert "| right (3) |" in parts["Did it work?"]
    assert "negative log-likelihood per assistant token" in parts["Did it work?"]
    assert "![loss by step](loss.svg)" in parts["Did it work?"]
    assert "**trained**" in parts["Samples"]
    figures = next(line for line in parts["Files"].splitlines() if "Q8_0" in line and line.startswith("| ["))
    assert all(cell.strip() for cell in figures.strip("|").split("|")[:7])
    for repo in (static, weighted):
        for name, content in repo.items():
            assert str(tmp_path).encode() not in content, name
