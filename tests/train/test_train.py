"""Whole trainings on a tiny random model: what a run holds, the same twice, and interrupted ones."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import Trainer, adapter_hashes, dated_copy, impatient, without_timings

from ftllm.data.rows import read_rows
from ftllm.data.shapes import conversation_of
from ftllm.errors import UserError, WorkError
from ftllm.files import sha256_file
from ftllm.likelihood import torch_likelihood
from ftllm.progress import Reporter
from ftllm.runs import Run, locked
from ftllm.train.config import TrainConfig, resolve
from ftllm.train.corpus import load_corpus
from ftllm.train.data import Rows
from ftllm.train.interrupt import Interrupted
from ftllm.train.metrics import read
from ftllm.train.settings import read_yaml
from ftllm.train.stage import resume, train
from ftllm.vocabulary import from_directory


def test_a_run_holds_what_export_and_people_need(trained: Trainer, tiny: Path, data: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = trained("a", eval="25%", epochs=4)
    run = result.run
    assert sorted(path.name for path in run.path.iterdir()) == [
        "REPORT.md",
        "adapter",
        "config.yaml",
        "heldout.jsonl",
        "loss.svg",
        "manifest.json",
        "metrics.jsonl",
    ]
    assert result.steps == 4 * 3  # nine rows, four a step
    manifest = run.read_manifest()
    assert manifest["status"] == "finished"
    assert manifest["base"]["path"] == str(tiny)
    assert manifest["base"]["files"]["model.safetensors"] == sha256_file(tiny / "model.safetensors")
    found = {"format": "messages", "conversations": 12, "thoughts": {"<think>": 12}, "ignored": []}
    assert manifest["data"] == [{"path": str(data), "use": "data", "sha256": sha256_file(data), **found}]
    assert manifest["noise"]["share_moved"] == pytest.approx(result.share_moved, abs=1e-6)
    assert manifest["noise"]["units"] == 9 * 14  # words
    assert manifest["noise"]["share_moved"] == pytest.approx(words_moved(run) / (9 * 14), abs=1e-6)
    computed = {"weights": "float32", "compute": "float32", "adapter": "float32"}
    assert manifest["precision"] == computed | {"merged_into": "bfloat16"}
    said = json.loads((run.adapter / "training.json").read_text())
    assert said["base"] == {"name": "tiny", "files": manifest["base"]["files"]}  # and not where it lies here
    assert said["precision"] == manifest["precision"]
    assert "merged into the base's own bfloat16 weights" in (run.path / "REPORT.md").read_text()
    assert {"python", "torch", "trl", "peft"} <= set(manifest["versions"])
    for name in ("tokenizer.model", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        assert (run.adapter / name).read_bytes() == (tiny / name).read_bytes()
    adapter = json.loads((run.adapter / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tiny)
    assert adapter["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    # The likelihoods are those of the base, and of the base with the adapter as plain peft loads it.
    config = resolve([read_yaml(run.config)])
    corpus = load_corpus(config)
    held_out = Rows(config, corpus, from_directory(tiny)).held_out()
    kept = [conversation_of(row, row["source"]) for _, row in read_rows(run.held_out)]
    assert kept == list(corpus.held_out)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    assert result.eval_before == pytest.approx(torch_likelihood(base, held_out).per_token, rel=1e-6)
    tuned = PeftModel.from_pretrained(base, run.adapter)
    assert result.eval_after == pytest.approx(torch_likelihood(tuned, held_out).per_token, rel=1e-6)
    assert result.eval_after is not None
    assert result.eval_before is not None
    assert result.eval_after < result.eval_before - 0.1
    # The metrics are the run's, and their mean is the loss reported.
    lines = read(run.metrics)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert result.train_loss == pytest.approx(sum(line["loss"] for line in lines) / 12)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert max(line["learning_rate"] for line in lines) == pytest.approx(1e-2)
    # The configuration in the run trains the same adapter again.
    again = train(config, Reporter(quiet=True), runs=run.path.parent, name="b")
    assert adapter_hashes(again.run) == adapter_hashes(run)


def words_moved(run: Run) -> int:
    """Words of the first epoch's user turns that are not where they are in the data, counted by hand."""
    config = resolve([read_yaml(run.config)])
    rows = Rows(config, load_corpus(config), from_directory(Path(config.model)))
    moved = 0
    for item in rows.corpus.training:
        pairs = zip(item.conversation.messages, rows.conversation(item, 0).messages, strict=True)
        moved += sum(
            a != b for old, new in pairs for a, b in zip(old.content.split(), new.content.split(), strict=True)
        )
    return moved


def test_the_loss_is_the_likelihood_of_the_rows_drawn(trained: Trainer, tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = trained("whole", batch_size=12, epochs=1)
    config = resolve([read_yaml(result.run.config)])
    rows = Rows(config, load_corpus(config), from_directory(tiny))
    drawn = [rows.draw(unit, 0) for unit in rows.plan().units]
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    assert read(result.run.metrics)[0]["loss"] == pytest.approx(torch_likelihood(base, drawn).per_token, rel=1e-5)


def test_same_seed_same_bytes_and_another_seed_others(trained: Trainer) -> None:
    first, second, other = trained("a"), trained("b"), trained("c", seed=1)
    assert adapter_hashes(first.run) == adapter_hashes(second.run)
    assert without_timings(first.run) == without_timings(second.run)
    weights = "adapter_model.safetensors"
    assert adapter_hashes(other.run)[weights] != adapter_hashes(first.run)[weights]


def test_what_changes_the_training_changes_the_adapter(trained: Trainer) -> None:
    """What is only handed to TRL and PEFT does reach the weights; test_every_key.py looks at every key."""
    changes: list[dict[str, Any]] = [
        {},
        {"preset": "sft"},
        {"noise__neftune_alpha": 5.0},
        {"lora__dropout": 0.2},
        {"lora__rslora": True},
        {"max_grad_norm": 0.1},
    ]
    hashes = [adapter_hashes(trained(f"r{i}", max_steps=5, **change).run)["adapter_model.safetensors"]
              for i, change in enumerate(changes)]  # fmt: skip
    assert len(set(hashes)) == len(hashes)


def test_accumulated_batches_are_one_batch(trained: Trainer) -> None:
    one = trained("one", batch_size=6, max_steps=4)
    two = trained("two", batch_size=3, gradient_accumulation=2, max_steps=4)
    losses = [[line["loss"] for line in read(result.run.metrics)] for result in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_interrupted_and_resumed_is_uninterrupted(trained: Trainer) -> None:
    whole = trained("whole", eval="25%", epochs=4)
    with pytest.raises(Interrupted):
        trained("cut", impatient(5), eval="25%", epochs=4)
    run = Run(trained.runs / "cut")
    assert run.read_manifest()["status"] == "interrupted"
    assert not run.adapter.exists()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best-6", "checkpoint-6"]
    with pytest.raises(Interrupted):  # and once more, at the end of an epoch
        resume(run, impatient(8))
    result = resume(run, Reporter(quiet=True))
    assert adapter_hashes(result.run) == adapter_hashes(whole.run)
    assert without_timings(result.run) == without_timings(whole.run)
    assert (result.train_loss, result.eval_before, result.eval_after) == (
        whole.train_loss, whole.eval_before, whole.eval_after
    )  # fmt: skip
    assert len(run.read_manifest()["resumed"]) == 2
    assert not run.checkpoints.exists()
    with pytest.raises(UserError, match="cut is finished"):
        resume(run, Reporter(quiet=True))


def test_resumed_on_another_day_it_reads_the_day_it_began(
    trained: Trainer, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two places' clocks are 26 hours, so that it is never the same day there."""
    model = str(dated_copy(tiny, tmp_path / "dated"))
    monkeypatch.setenv("TZ", "Etc/GMT+12")
    time.tzset()
    try:
        whole = trained("whole", model=model, max_steps=4)
        with pytest.raises(Interrupted):
            trained("cut", impatient(2), model=model, max_steps=4)
        monkeypatch.setenv("TZ", "Etc/GMT-14")
        time.tzset()
        resumed = resume(Run(trained.runs / "cut"), Reporter(quiet=True))
        later = trained("later", model=model, max_steps=4)
    finally:
        monkeypatch.undo()
        time.tzset()
    began, day_after = (result.run.read_manifest()["config"]["date"] for result in (whole, later))
    assert began < day_after
    assert resumed.run.read_manifest()["config"]["date"] == began
    assert adapter_hashes(resumed.run) == adapter_hashes(whole.run) != adapter_hashes(later.run)


def test_the_day_is_asked_for_once(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And by the first of several processes for all of them, whatever day it is when the others come to it."""
    days = iter(date(2026, 1, day) for day in range(1, 9))
    today = property(lambda config: next(days) if config.date == "auto" else config.date)
    monkeypatch.setattr(TrainConfig, "today", today)
    manifest = trained("midnight", max_steps=1).run.read_manifest()
    assert manifest["config"]["date"] == "2026-01-01"
    assert next(days) == date(2026, 1, 2)


def test_resume_refuses_changed_data_and_a_run_in_use(trained: Trainer, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(data.read_bytes())
    with pytest.raises(Interrupted):
        trained("cut", impatient(2), data=[str(copy)])
    run = Run(trained.runs / "cut")
    with locked(run), pytest.raises(UserError, match="cut is being trained by another process"):
        resume(run, Reporter(quiet=True))
    copy.write_text(copy.read_text().replace("garden", "wooden"))
    with pytest.raises(UserError, match="the data has changed since this run began"):
        resume(run, Reporter(quiet=True))


def test_killed_at_any_moment_and_resumed_from_the_command_line(trained: Trainer, tmp_path: Path) -> None:
    """A run killed with SIGKILL goes on to the adapter of an undisturbed run, through the program itself."""
    settings = {"epochs": 5, "save_steps": 4, "eval": "25%", "eval_steps": 3, "samples": 1, "sample_tokens": 2}
    whole = trained("whole", **settings)
    command = [sys.executable, "-m", "ftllm", "train", "--json", "--runs", str(trained.runs)]
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps({**trained.given, **settings}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}  # transformers prints that it is
    process = subprocess.Popen(
        [*command, str(file), "--name", "killed"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if (event.get("task"), event.get("completed")) == ("training", 7):
            process.kill()
            break
    process.communicate()
    run = Run(trained.runs / "killed")
    assert run.read_manifest()["status"] == "running"
    resumed = subprocess.run([*command, "--resume"], capture_output=True, env=environment, text=True, check=True)
    done = json.loads(resumed.stdout.splitlines()[-1])
    assert done.keys() >= {"event", "run", "adapter", "steps", "train_loss", "eval_nll", "seconds"}
    assert (done["event"], done["run"], done["adapter"]) == ("done", str(run.path), str(run.adapter))
    assert done["steps"] == 15
    assert done["train_loss"] == pytest.approx(whole.train_loss)
    assert (done["eval_nll"], done["adapter_step"]) == (whole.eval_after, whole.adapter_step)
    assert (run.path / "samples.json").read_text() == (whole.run.path / "samples.json").read_text()
    assert adapter_hashes(run) == adapter_hashes(whole.run)
    assert without_timings(run) == without_timings(whole.run)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(trained: Trainer) -> None:
    """No file may grow beyond 64 kB: the adapter's weights fit, the tokenizer's copy does not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        with pytest.raises(WorkError, match="no space left while writing"):
            trained("full", max_steps=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run = Run(trained.runs / "full")
    assert run.read_manifest()["status"] == "failed"
    assert not run.adapter.exists()
    assert not list(run.path.glob("*.partial"))


class Filled(Reporter):
    """Has no file grow beyond 16 kB from step 5 on: the checkpoint of step 6 does not fit."""

    def event(self, event: str, **fields: Any) -> None:
        if event == "progress" and fields.get("task") == "training" and fields["completed"] == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_disk_that_fills_leaves_the_last_checkpoint(trained: Trainer) -> None:
    from rich.console import Console

    limits, output = resource.getrlimit(resource.RLIMIT_FSIZE), io.StringIO()
    try:
        with pytest.raises(WorkError, match=r"no space left while writing .*checkpoint-6"):
            trained("full", Filled(console=Console(file=output, width=200)), save_steps=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run = Run(trained.runs / "full")
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-3"]
    said = output.getvalue().splitlines()[-1]
    assert (
        said
        == f"a checkpoint of step 3 is saved; go on with: ftllm train --resume --name full --runs {run.path.parent}"
    )
    whole = trained("whole")
    assert adapter_hashes(resume(run, Reporter(quiet=True)).run) == adapter_hashes(whole.run)


def test_a_loss_that_is_no_number_stops_the_run(trained: Trainer) -> None:
    with pytest.raises(WorkError, match="the loss became"):
        trained("nan", learning_rate=1e30, max_grad_norm=0, warmup_steps=0)


def test_places_that_cannot_be_written(trained: Trainer, tmp_path: Path) -> None:
    trained("taken", max_steps=1)
    with pytest.raises(UserError, match="taken exists already") as caught:
        trained("taken")
    assert caught.value.hint == "choose another --name"  # it is finished: there is nothing to resume
    (tmp_path / "file").touch()
    trained.runs = tmp_path / "file" / "runs"
    with pytest.raises(UserError, match="cannot write"):
        trained("a")


def test_bad_input_leaves_no_run_behind(trained: Trainer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(UserError, match=r"bad.jsonl:1: no assistant turn"):
        trained("a", data=[str(bad)])
    assert list(trained.runs.iterdir()) == []


def test_noise_that_moves_nothing_is_said(trained: Trainer, tmp_path: Path) -> None:
    data = tmp_path / "short.jsonl"
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    data.write_text(json.dumps({"messages": talk}) + "\n")
    said = "the noise moves nothing: at noise.ratio 0.7 the user turns have too little to shuffle"
    for preset, expected in (("ft", 1), ("sft", 0)):
        run = trained(preset, data=[str(data)], preset=preset, max_steps=1, warmup_steps=0).run
        notes = run.read_manifest()["notes"]
        assert sum(note.startswith(said) for note in notes) == expected


def test_piped_progress_is_plain_and_warnings_are_said(trained: Trainer, data: Path, tmp_path: Path) -> None:
    """One of the warnings: the data's thoughts stand between other tags than the model's."""
    from rich.console import Console

    output = io.StringIO()
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace("think>", "thinking>"))
    reporter = Reporter(console=Console(file=output, width=200))
    result = trained("a", reporter, max_steps=2, warmup_steps=5, data=[str(other)])
    lines = output.getvalue().splitlines()
    note = (
        "the data writes thoughts with <thinking> (12 rows); they are trained between the model's own tags, "
        "<think> and </think>"
    )
    assert lines.count(f"warning: {note}") == 1
    assert note in result.run.read_manifest()["notes"]
    assert note.replace("<", "\\<") in (result.run.path / "REPORT.md").read_text()
    assert lines[0].startswith("a: tiny, 12 rows (")
    assert any(
        line.startswith("warning: the warm-up of 5 steps is no shorter than the training of 2") for line in lines
    )
    assert any(line.startswith("step 2/2  loss ") for line in lines)
    assert not any("\x1b" in line or "\r" in line for line in lines)
