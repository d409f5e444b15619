"""One training by several processes: as one process would do it, stopped, killed, and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from trainings import Trainer, impatient

from ftllm.errors import UserError
from ftllm.files import sha256_file
from ftllm.progress import Reporter
from ftllm.render import IGNORED
from ftllm.runs import Run
from ftllm.train import backend, lineage
from ftllm.train.config import TrainConfig, resolve
from ftllm.train.corpus import load_corpus
from ftllm.train.data import Rows
from ftllm.train.interrupt import Interrupted
from ftllm.train.metrics import read
from ftllm.train.processes import Processes, here, how_to_go_on
from ftllm.train.settings import Setting
from ftllm.train.stage import resume
from ftllm.train.table import Table
from ftllm.vocabulary import from_directory

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
LAUNCHERS = {
    "fsdp": ["-m", "accelerate.commands.launch", "--config_file", "FSDP"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no"],
}  # fmt: skip
# Eleven rows: the last step of an epoch has three, which do not divide between two processes.
SETTINGS = ["learning_rate=1e-2", "warmup_steps=2", "samples=1", "sample_tokens=2", "lora.dropout=0.1"]


class Launched:
    """`ftllm train` on the tiny model, by two processes or one."""

    def __init__(self, model: Path, data: Path, runs: Path) -> None:
        self.given = ["--model", str(model), "--data", str(data), "--eval", "10%", "--runs", str(runs)]
        self.runs = runs

    def start(self, name: str, launcher: str | None, *settings: str, resumed: bool = False) -> subprocess.Popen[str]:
        words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
        ends = ["--resume", "--runs", str(self.runs)] if resumed else [*self.given, *words]
        program = [str(HERE / "fsdp_on_cpu.py")] if launcher == "fsdp" else ["-m", "ftllm"]
        before = [self.fsdp() if word == "FSDP" else word for word in LAUNCHERS.get(launcher or "", [])]
        command = [sys.executable, *before, *program, "train", "--json", *ends]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, "--name", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )

    def fsdp(self) -> str:
        """The configuration in the README, for two processes in full precision."""
        (text,) = re.findall(r"```yaml\n(distributed_type: FSDP\n.*?)```", README.read_text(), re.DOTALL)
        text = re.sub("num_processes: .*", "num_processes: 2", text)
        path = self.runs.parent / "fsdp.yaml"
        path.write_text(re.sub("mixed_precision: .*", 'mixed_precision: "no"', text))
        return str(path)

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Run, list[dict[str, Any]], str]:
        out, said = (process := self.start(*arguments, **options)).communicate(timeout=300)
        assert process.returncode == 0, said
        return Run(self.runs / arguments[0]), [json.loads(line) for line in out.splitlines()], said


@pytest.fixture
def launched(tiny: Path, data: Path, tmp_path: Path) -> Launched:
    return Launched(tiny, data, tmp_path / "runs")


def curve(run: Run) -> dict[str, list[float]]:
    lines = read(run.metrics)
    return {
        key: [line[key] for line in lines if key in line]
        for key in ("step", "epoch", "loss", "learning_rate", "grad_norm", "accuracy", "entropy", "eval_nll")
    }


def test_the_order_and_the_noise_are_those_of_one_process(trained: Trainer, tiny: Path) -> None:
    """What each of three processes draws, put together batch by batch, is what one draws; blanks bear no loss."""
    given = {**trained.given, "noise.per_epoch": True}
    config = resolve([{key: Setting(value, "test") for key, value in given.items()}])
    rows = Rows(config, load_corpus(config), from_directory(tiny))
    plan = rows.plan()
    alone, shared = Table(rows, plan, config.seed), Table(rows, plan, config.seed, multiple=5)
    assert (alone.size, shared.size) == (12, 15)
    orders = []
    for epoch in (0, 1):
        alone.epoch = shared.epoch = epoch
        expected = alone({"place": list(range(12))})
        batches = [shared({"place": [place]}) for place in range(15)]
        assert [batch["input_ids"][0] for batch in batches[:12]] == expected["input_ids"]
        assert all(set(batch["labels"][0]) == {IGNORED} for batch in batches[12:])
        orders.append(list(alone.order()))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]


def test_where_it_is_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert here() == Processes()
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert here() == Processes(5, 8, 1, 4, sharded=True, accelerate=True)
    assert not here().first
    run = Run(tmp_path / "a")
    assert how_to_go_on(run, Processes()) == f"ftllm train --resume --name a --runs {tmp_path}"
    assert how_to_go_on(run, here()).startswith("accelerate launch")
    assert how_to_go_on(run, Processes(0, 2, 0, 2)).startswith("torchrun --nproc-per-node 2 -m ftllm train --resume")


def test_a_run_of_several_is_not_gone_on_with_by_one(trained: Trainer) -> None:
    with pytest.raises(Interrupted):
        trained("cut", impatient(2))
    run = Run(trained.runs / "cut")
    run.write_manifest(run.read_manifest() | {"processes": 2})
    with pytest.raises(UserError, match="cut was trained by 2 processes, and this is 1"):
        resume(run, Reporter(quiet=True))


def resolved(config: TrainConfig) -> tuple[str, backend.Device]:
    """What is left to the machine."""
    return backend.choose(config)[0], backend.device(config, 1000)


def test_what_fsdp_cannot_do_is_refused(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {key: Setting(value, "test") for key, value in trained.given.items()}
    parent = trained("parent", max_steps=1).run
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(UserError, match="accelerate is set up for FSDP 1, and only FSDP 2 is supported"):
        here().join()
    for key, value, words in [
        ("backend", "unsloth", "unsloth keeps a model whole"),
        ("load_in_4bit", True, "load_in_4bit cannot be split over processes by FSDP"),
        ("optimizer", "adamw_8bit", "adamw_8bit cannot be split over processes by FSDP"),
    ]:
        config = resolve([given | {key: Setting(value, "test")}])
        with pytest.raises(UserError, match=words):
            resolved(config)
    merging = {"from_run": str(parent.path), "from_adapter": "merge"}
    config = resolve([given | {key: Setting(value, "test") for key, value in merging.items()}])
    with pytest.raises(UserError, match="from_adapter: merge keeps a part of each tensor"):
        lineage.parent_of(config)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_as_one(launched: Launched, launcher: str) -> None:
    """Copies of the model (DDP), or halves of it (FSDP)."""
    one, events, _ = launched("one", None, "batch_size=4", "lora.dropout=0")
    two, theirs, said = launched("two", launcher, "batch_size=2", "lora.dropout=0")
    ours = curve(one)
    assert len(ours["loss"]) == 9
    for key, values in curve(two).items():
        assert values == pytest.approx(ours[key], rel=2e-4), key
    # One of them prints and writes; the report and the answers are those of one.
    kinds = [[event["event"] for event in printed if event["event"] != "progress"] for printed in (events, theirs)]
    assert kinds[0] == kinds[1]
    assert theirs[-1]["train_loss"] == pytest.approx(events[-1]["train_loss"], rel=1e-4)
    assert "Traceback" not in said
    assert sorted(path.name for path in two.path.iterdir()) == sorted(path.name for path in one.path.iterdir())
    assert two.read_manifest()["processes"] == 2
    own, other = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, two))
    assert own.keys() == other.keys()
    for name, tensor in own.items():
        assert torch.allclose(other[name], tensor, atol=2e-4), name


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The workers, by rank."""
    found = psutil.Process(process.pid).children(recursive=True)
    return sorted(
        (child for child in found if "train" in child.cmdline()), key=lambda child: int(child.environ()["RANK"])
    )


def until_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if (event.get("task"), event.get("completed")) == ("training", step):
            return


def kill(rank: int) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: children(process)[rank].send_signal(signal.SIGKILL)


def stall(process: subprocess.Popen[str]) -> None:
    """The second no longer answers, which the first does not notice by itself, and the launcher ends both."""
    children(process)[1].suspend()
    process.terminate()


GONE = "one of the 2 processes of this training is gone, killed or out of memory"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "how", "code", "words"),
    [
        ("torchrun", kill(1), 1, f"error: {GONE}"),
        ("torchrun", kill(0), 1, f"error: process 1: {GONE}"),
        ("torchrun", stall, 1, f"error: {GONE}"),
        ("fsdp", kill(1), 1, f"error: {GONE}"),
        ("torchrun", lambda process: process.send_signal(signal.SIGINT), None, ""),
    ],
    ids=["kill the second", "kill the first", "stall", "FSDP", "Ctrl-C"],
)
def test_stopped_and_gone_on_with(launched: Launched, launcher: str, how: Any, code: int | None, words: str) -> None:
    """Dropout included: each process goes on with its own random numbers."""
    settings = ("batch_size=2", "save_steps=3", "epochs=6")
    whole, _, _ = launched("whole", launcher, *settings)
    process = launched.start("cut", launcher, *settings)
    until_step(process, 7)
    began = time.monotonic()
    how(process)
    out, said = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    ours = [line for line in said.splitlines() if line.startswith(("error:", "hint:"))]
    if code:
        assert process.returncode == code
        assert len(ours) == 2
        assert ours[0] == words
        command = "accelerate launch" if launcher == "fsdp" else "torchrun --nproc-per-node 2 -m ftllm train"
        assert command in ours[1]
        assert "train --resume --name cut" in ours[1]
        assert "ftllm/train/" not in said  # no traceback through our files
    else:
        stopped = json.loads(out.splitlines()[-1])
        assert stopped["event"] == "interrupted"
        assert stopped["step"] >= 7
        assert ours == []
    again, _, _ = launched("cut", launcher, resumed=True)
    for key, values in curve(again).items():
        assert values == curve(whole)[key], key
    weights = "adapter/adapter_model.safetensors"
    assert sha256_file(again.path / weights) == sha256_file(whole.path / weights)
