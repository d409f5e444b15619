"""What training, export and eval really leave, on the Hub; only the importance matrix is made by hand."""

from __future__ import annotations

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
from ftllm.llama.header import read_header
from ftllm.progress import Reporter
from ftllm.runs import Run

NANO = Path(__file__).parents[2] / "models" / "nano"


KEPT = ("README", "config", "generation_config", "chat_template", "model")


def command(*arguments: str) -> None:
    done = CliRunner().invoke(build(arguments), list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output


def even_importance(path: Path, model: Path) -> Path:
    """An importance matrix that finds every weight of a model equally important."""
    shapes = {tensor.name: tensor.shape[0] for tensor in read_header(model).tensors if len(tensor.shape) == 2}
    ones = {name: np.ones((1, columns), dtype=np.float32) for name, columns in shapes.items()}
    counts = {name: np.ones(1, dtype=np.float32) for name in shapes}
    importance.save(path, ones, counts, dataset="nothing", chunks=1, chunk_size=512)
    return path


def test_a_run_from_the_hub_back_to_the_hub(
    owner: Hub, reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = owner.add(
        "lab/sums", {"train.jsonl": b"".join((NANO / "ft.jsonl").open("rb").readlines()[:20])}, type="dataset"
    )
    base = owner.add(
        "lab/nano",
        {path.name: path.read_bytes() for path in NANO.iterdir() if "token" in path.name or path.stem in KEPT},
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b"".join((NANO / "heldout.jsonl").read_bytes().splitlines(keepends=True)[:3]))
    training = ["--model", "lab/nano", "--data", "lab/sums", "--eval", "10%", "--name", "think"]
    command("train", *training, "--set", "max_steps=2", "--quiet")
    run = Run(tmp_path / "runs" / "think")
    (split,) = {
        Path(file.path).parent
        for file in export(ExportRequest("think", ["Q8_0"], split_max_size="3M", verify="full"), reporter).files
    }
    matrix = even_importance(split / "nano.imatrix.gguf", next(split.glob("*-00001-of-*.gguf")))
    export(ExportRequest("think", ["IQ4_XS"], imatrix=str(matrix), verify="quick"), reporter)
    command("eval", "think", "--data", str(prompts), "--max-tokens", "40", "--quiet")

    push(PushRequest("owner/think", "think", both=True), reporter)
    static, weighted = owner.repo("owner/think-GGUF").files, owner.repo("owner/think-i1-GGUF").files
    shards = sorted(path.name for path in run.gguf.glob("*Q8_0-*.gguf"))
    assert len(shards) > 1
    assert [name for name in sorted(static) if name.endswith(".gguf")] == shards
    assert {name for name in weighted if name.endswith(".gguf")} == {"nano-think-IQ4_XS.gguf", matrix.name}
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
