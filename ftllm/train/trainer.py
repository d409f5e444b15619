"""The trainer: TRL's, fed with our rows, watched by our callback, saved by our rules.

Importing this module imports torch, transformers and TRL; with the `unsloth` backend, unsloth must come first.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from ftllm.errors import WorkError
from ftllm.files import write_json
from ftllm.train import adapter, checkpoints, sharding
from ftllm.train.data import collate, keeps_rows_apart, pack
from ftllm.train.head import install
from ftllm.train.heldout import HeldOut
from ftllm.train.lineage import Kept
from ftllm.train.metrics import STATE, Metrics
from ftllm.train.prepare import Prepared
from ftllm.train.processes import Processes
from ftllm.train.table import Table


class Watcher(TrainerCallback):  # type: ignore[misc]
    """Sets the table's epoch, keeps the metrics, measures, shows progress, and stops when asked to.

    Args:
        table: what the trainer reads from.
        metrics: where each step goes.
        held_out: what is measured on.
        root: where the run's checkpoints go.
        show: called with each step.
        stopping: whether to save a checkpoint and stop.
        processes: of which this is one.

    Attributes:
        before: called when the model is as it will be trained, before the first step.
    """

    def __init__(
        self,
        table: Table,
        metrics: Metrics,
        held_out: HeldOut,
        root: Path,
        show: Callable[[dict[str, Any]], None],
        stopping: Callable[[], bool],
        processes: Processes,
    ) -> None:
        self.table = table
        self.metrics = metrics
        self.held_out = held_out
        self.root = root
        self.show = show
        self.stopping = stopping
        self.processes = processes
        self.before: Callable[[], None] = lambda: None

    def on_train_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_kwargs: Any
    ) -> None:
        self.before()

    def on_epoch_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_kwargs: Any
    ) -> None:
        self.table.epoch = int(state.epoch or 0)

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: Any
    ) -> TrainerControl:
        if self.processes.any(self.stopping()) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        return control

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        logs: dict[str, float] | None = None,
        **_kwargs: Any,
    ) -> TrainerControl:
        """Every step comes by here, before a checkpoint of it is saved."""
        if not logs or "loss" not in logs:
            return control
        step, last = state.global_step, state.global_step >= state.max_steps
        if not math.isfinite(logs["loss"]):  # it is the mean of all processes, and so the same in all
            if not self.processes.first:
                raise SystemExit(1)
            raise WorkError(
                f"the loss became {logs['loss']} at step {step}", "lower learning_rate, or set precision to float32"
            )

        def measure() -> float:
            return self.held_out.likelihood(model, self.processes).per_token

        due = self.held_out.due(step, state.max_steps)
        reading = self.metrics.add(step, state.epoch or 0.0, logs, last=last, measure=measure if due else None)
        best = self.metrics.best
        if due and best is not None and best["step"] == step and self.held_out.keeps_best:
            tensors = sharding.adapter_of(model) if self.processes.sharded else None
            if self.processes.first:
                checkpoints.save_best(self.root, step, lambda place: adapter.save(model, place, tensors))
        self.show(reading)
        if self.metrics.exhausted(self.held_out.patience):
            control.should_training_stop = True
        return control


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Keeps what of an adapter is not trained as it is."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self.kept = kept

    def on_optimizer_step(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_kwargs: Any
    ) -> None:
        for part in self.kept:
            part.restore()


class FragmentedTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with checkpoints that are whole or absent, and hold nothing but what a resume needs."""

    metrics: Metrics
    processes: Processes

    def _save_checkpoint(self, _model: Any, _trial: Any) -> None:
        """Write a checkpoint, in the first process alone; the others send it what it needs of theirs."""
        generators = self.processes.gathered(self._generators())
        tensors = self.adapter_tensors()
        optimizer = sharding.optimizer_state(self.optimizer) if self.processes.sharded else None

        def fill(directory: Path) -> None:
            adapter.save(self.model, directory, tensors)
            if optimizer is None:
                self._save_optimizer_and_scheduler(str(directory))
            else:
                torch.save(optimizer, directory / "optimizer.pt")
                torch.save(self.lr_scheduler.state_dict(), directory / "scheduler.pt")
            for name, content in generators:
                (directory / name).write_bytes(content)
            self.state.log_history.clear()  # the metrics have it
            self.state.save_to_json(str(directory / "trainer_state.json"))
            write_json(directory / STATE, self.metrics.state())

        self.processes.told(lambda: checkpoints.save(Path(self.args.output_dir), self.state.global_step, fill))

    def adapter_tensors(self) -> dict[str, Any] | None:
        """The adapter put together where it is split over processes, which all do together; None where it is whole."""
        return sharding.adapter_of(self.model) if self.processes.sharded else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.processes.sharded:
            sharding.put_adapter(self.model, load_file(Path(resume_from_checkpoint) / adapter.WEIGHTS))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.processes.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu", weights_only=True)
        sharding.put_optimizer_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _generators(self) -> tuple[str, bytes]:
        """The state of this process's random generators, as the trainer reads it again: a file's name and content."""
        with tempfile.TemporaryDirectory() as directory:
            self._save_rng_state(directory)
            (file,) = Path(directory).iterdir()
            return file.name, file.read_bytes()

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        """The table itself has the order."""
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


def make(model: Any, prepared: Prepared, table: Table, watcher: Watcher, directory: Path) -> FragmentedTrainer:
    """The trainer of a run.

    Args:
        model: a PEFT model.
        prepared: what is trained, and on what.
        table: the rows.
        watcher: called as training goes on.
        directory: where checkpoints go.
    """
    from transformers.trainer_callback import PrinterCallback

    config, device, tokenizer = prepared.config, prepared.device, prepared.tokenizer
    checkpointing = config.gradient_checkpointing and prepared.backend == "hf"  # Unsloth sets its own up
    arguments = SFTConfig(
        output_dir=str(directory),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(config.schedule, config.schedule),
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        optim="paged_adamw_8bit" if device.eight_bit else "adamw_torch",
        max_grad_norm=config.max_grad_norm,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        seed=config.seed,
        data_seed=config.seed,
        bf16=device.precision == "bfloat16",
        fp16=False,
        use_cpu=device.kind == "cpu",
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        neftune_noise_alpha=config.noise.neftune_alpha or None,
        max_length=None,  # rows come with the right length
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device.kind == "cuda",
        logging_steps=1,  # the metrics take every step, and write a line as log_steps says
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more take a launcher; torch's DataParallel is not wanted
    places = Dataset.from_dict({"place": list(range(table.size))}).with_transform(table)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collator: Callable[[Sequence[dict[str, Sequence[int]]]], dict[str, Any]] = partial(collate, pad_id=pad_id or 0)
    packing = prepared.backend == "hf" and device.kind == "cpu"
    if packing and config.batch_size > 1 and keeps_rows_apart(model, table.first(2)):
        collator = pack  # half of a batch of short rows is padding, and a CPU pays for it in full
    install(device.kind)
    trainer = FragmentedTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=places,
        data_collator=collator,
        callbacks=[watcher],
    )
    trainer.metrics = watcher.metrics
    trainer.processes = watcher.processes
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(trainer: FragmentedTrainer, checkpoint: tuple[int, Path] | None, steps: int, patience: int) -> int:
    """Train to the end, from a checkpoint (its step and place) where there is one.

    Returns:
        the step reached: `steps`, or less where patience ended or an interruption came.
    """
    if checkpoint is None:
        trainer.train()
    elif checkpoint[0] >= steps or trainer.metrics.exhausted(patience):  # only the ending was missed
        trainer._load_from_checkpoint(str(checkpoint[1]))
        return checkpoint[0]
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint[1]))
    return int(trainer.state.global_step)


def go_back(trainer: FragmentedTrainer, directory: Path) -> None:
    """Put an adapter that was set aside in the place of the present one."""
    trainer._load_from_checkpoint(str(directory))
