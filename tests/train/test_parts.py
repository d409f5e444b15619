"""The parts of a training that need no training: base, targets, checkpoints, the head."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from ftllm.errors import UserError, WorkError
from ftllm.train import checkpoints
from ftllm.train.base import find
from ftllm.train.head import TorchHead, install
from ftllm.train.metrics import Metrics, read, smoothed

NANO = Path(__file__).parents[2] / "models" / "nano"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


def refused(model: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        find(str(model), offline=True).parameters()
    assert caught.value.exit_code == 2
    return caught.value.message


def test_base_directory(tiny: Path) -> None:
    base = find(str(tiny))
    assert (base.path, base.name, base.reference, base.repository) == (tiny, "tiny", str(tiny), None)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert base.parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= set(base.record()["files"])


def test_bad_bases(copy: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == f"no model directory {tmp_path / 'none'}"
    (copy / "model.safetensors").rename(copy / "kept")
    assert refused(copy) == f"{copy} has no weights"
    (copy / "pytorch_model.bin").touch()
    assert "pytorch_model.bin, which is not read" in refused(copy)
    whole = (copy / "kept").read_bytes()
    for cut in (len(whole) // 2, 100, 4, 0):
        (copy / "model.safetensors").write_bytes(whole[:cut])
        assert refused(copy) == f"{copy / 'model.safetensors'} is not a whole safetensors file"
    (copy / "model.safetensors").write_bytes(whole)
    for name in ("tokenizer.json", "tokenizer.model"):
        (copy / name).unlink()
    assert refused(copy).startswith(f"{copy} has no tokenizer")
    (copy / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(copy)
    (copy / "config.json").unlink()
    assert refused(copy) == f"{copy} is not a model: it has no config.json"
    (copy / "adapter_config.json").touch()
    with pytest.raises(UserError) as caught:
        find(str(copy))
    assert caught.value.hint == "this is an adapter; give the base it was trained on"


def test_sharded_base_with_a_missing_shard(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(copy) == f"{copy} lacks model-00002-of-00002.safetensors, which its index names"


def test_quantized_base_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert "already quantized" in refused(copy)
    # One on the Hub by its name, before anything is fetched.
    with pytest.raises(UserError, match="unsloth/gemma-3-4b-it-unsloth-bnb-4bit is already quantized") as caught:
        find("unsloth/gemma-3-4b-it-unsloth-bnb-4bit@main")
    assert caught.value.hint.startswith("give unsloth/gemma-3-4b-it;")


def test_repository_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nobody/nothing is not on this machine, and this is offline"):
        find("nobody/nothing", offline=True)


def warnings_of(root: Path) -> tuple[tuple[int, Path] | None, list[str]]:
    said: list[str] = []
    return checkpoints.latest(root, said.append), said


def checkpoint(root: Path, step: int, best: int | None = None) -> None:
    def fill(directory: Path) -> None:
        (directory / "weights").write_bytes(b"w" * 100)
        state = {"best": best, "lines": [], "pending": [], "tokens": 0, "seconds": 0}
        (directory / "metrics.json").write_text(json.dumps(state))

    checkpoints.save(root, step, fill)


def best(root: Path, step: int) -> None:
    checkpoints.save_best(root, step, lambda directory: (directory / "weights").write_bytes(b"b" * 100))  # type: ignore[arg-type,return-value]


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_checkpoints_are_sealed_rotated_and_skipped_when_damaged(tmp_path: Path) -> None:
    for step in (10, 20, 100):
        checkpoint(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-20"]
    assert warnings_of(tmp_path) == ((100, tmp_path / "checkpoint-100"), [])
    (tmp_path / "checkpoint-110.partial").mkdir()
    (tmp_path / "checkpoint-100" / "weights").write_bytes(b"w" * 99)
    found, said = warnings_of(tmp_path)
    assert found == (20, tmp_path / "checkpoint-20")
    assert said == [
        "checkpoint-110 was not written to its end; it is left out",
        "checkpoint-100 is damaged; it is left out",
    ]
    assert not (tmp_path / "checkpoint-110.partial").exists()
    (tmp_path / "checkpoint-20" / "metrics.json").unlink()
    assert warnings_of(tmp_path)[0] is None


def test_best_adapters_stay_while_a_checkpoint_refers_to_them(tmp_path: Path) -> None:
    best(tmp_path, 5)
    checkpoint(tmp_path, 10, best=5)
    best(tmp_path, 12)
    assert names(tmp_path) == ["best-12", "best-5", "checkpoint-10"]  # going back to step 10, 5 is the best again
    checkpoint(tmp_path, 20, best=12)
    assert names(tmp_path) == ["best-12", "best-5", "checkpoint-10", "checkpoint-20"]
    checkpoint(tmp_path, 30, best=12)
    assert names(tmp_path) == ["best-12", "checkpoint-20", "checkpoint-30"]
    (tmp_path / "best-12" / "weights").write_bytes(b"?")
    found, said = warnings_of(tmp_path)
    assert found is None
    assert said[0] == "best-12 is damaged; checkpoint-30 is left out"
    with pytest.raises(WorkError, match="best-12, the best adapter, is damaged"):
        checkpoints.best(tmp_path, 12)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path, failure: Exception) -> None:
    checkpoint(tmp_path, 1)

    def fill(directory: Path) -> None:
        (directory / "weights").touch()
        raise failure

    with pytest.raises(WorkError, match=r"no space left while writing .*checkpoint-2"):
        checkpoints.save(tmp_path, 2, fill)
    assert names(tmp_path) == ["checkpoint-1"]
    assert warnings_of(tmp_path) == ((1, tmp_path / "checkpoint-1"), [])


def test_too_little_space_is_refused_before_work(tmp_path: Path) -> None:
    checkpoints.require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(WorkError, match="MB are free, and this training writes about"):
        checkpoints.require_space(tmp_path, 10**18)


def test_metrics_go_on_where_a_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2, 3):
        metrics.add(step, step / 10, {"loss": float(step), "num_tokens": 10.0 * step})
        if step == 2:
            state = json.loads(json.dumps(metrics.state()))
    assert metrics.train_loss == 2.0
    path.write_text(path.read_text() + '{"step": 4, "lo')
    resumed = Metrics(path, state=state)
    resumed.add(3, 0.3, {"loss": 9.0, "num_tokens": 10.0})
    assert [(line["step"], line["loss"], line["tokens"]) for line in read(path)] == [(1, 1, 10), (2, 2, 20), (3, 9, 30)]
    assert resumed.train_loss == 4.0


def test_lines_are_means_wherever_a_checkpoint_came_between(tmp_path: Path) -> None:
    """Losses 1 to 7, a line every three steps: 2, 5 and the last step's 7, interrupted after step 4 or not."""

    def tell(metrics: Metrics, steps: range) -> None:
        for step in steps:
            metrics.add(step, 0.0, {"loss": float(step)}, last=step == 7)

    whole, cut = Metrics(tmp_path / "whole", 3), Metrics(tmp_path / "cut", 3)
    tell(whole, range(1, 8))
    tell(cut, range(1, 5))
    resumed = Metrics(tmp_path / "cut", 3, json.loads(json.dumps(cut.state())))
    tell(resumed, range(5, 8))
    for metrics in (whole, resumed):
        assert [(line["step"], line["loss"]) for line in read(metrics.path)] == [(3, 2.0), (6, 5.0), (7, 7.0)]
        assert metrics.train_loss == 4.0


def test_best_and_patience(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m")
    for step, nats in enumerate([3.0, 2.0, 2.5, 2.0, 2.1], 1):
        assert not metrics.exhausted(3)
        metrics.add(step, 0.0, {"loss": 1.0}, measure=lambda nats=nats: nats)  # type: ignore[misc]
    assert metrics.best is not None
    assert metrics.best["step"] == 2  # the earliest of equals
    assert metrics.exhausted(3)
    assert not metrics.exhausted(4)
    assert not metrics.exhausted(0)


def test_smoothed_loss_is_a_weighted_mean() -> None:
    assert smoothed([5.0, 5.0, 5.0]) == pytest.approx([5, 5, 5])
    # (0.1 * 0.9 * 4 + 0.1 * 2) / (0.09 + 0.1)
    assert smoothed([4.0, 2.0]) == pytest.approx([4, 0.56 / 0.19])


@pytest.mark.parametrize(("softcap", "scale", "values"), [(None, 1.0, 2**25), (None, 1.0, 64), (30.0, 0.5, 64)])
def test_head_is_cross_entropy(
    softcap: float | None, scale: float, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece and in chunks: log-probabilities, entropy, top-1 and gradients of torch's own functions."""
    monkeypatch.setattr("ftllm.train.head.CHUNK_VALUES", values)
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    bias = torch.randn(20)
    targets = torch.randint(20, (11,))
    logits = (hidden @ weight.T + bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = -torch.nn.functional.cross_entropy(logits / 0.7, targets, reduction="none")
    grads = torch.autograd.grad(expected.sum(), (hidden, weight))
    log_probs, entropy, _, _, top = TorchHead.apply(
        hidden, weight, bias, targets, 0.7, 32768, softcap, scale, ("log_probs", "entropy", "is_top1")
    )
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits / 0.7).entropy())
    assert top.tolist() == (logits.argmax(-1) == targets).tolist()
    for found, wanted in zip(torch.autograd.grad(log_probs.sum(), (hidden, weight)), grads, strict=True):
        torch.testing.assert_close(found, wanted)
    assert TorchHead.apply(hidden, weight, bias, targets, 0.7, 32768)[1] is None


def test_tritons_head_is_for_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build of torch brings Triton to machines without a GPU too, where its kernel finds no driver."""
    from trl.trainer import utils

    theirs = object()
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", theirs)
    assert not install("cuda")
    assert utils._ChunkedLogProbFunction is theirs
    assert install("cpu")
    assert utils._ChunkedLogProbFunction is TorchHead
