"""A training from its configuration to a finished run, and an interrupted one to its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.files import write_text
from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS, Run, create, environment, now
from ftllm.train import backend, base, checkpoints
from ftllm.train.base import Base
from ftllm.train.config import TrainConfig, resolve, to_yaml
from ftllm.train.data import load_corpus
from ftllm.train.display import announce, display
from ftllm.train.prepare import Clock, Prepared, prepare
from ftllm.train.settings import read_yaml


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        run: where it lies.
        steps: optimizer steps in all.
        train_loss: mean loss a step, in nats per trained token.
        eval_before: likelihood of the held-out rows under the base, in nats per assistant token; None without them.
        eval_after: the same under the trained model.
        share_moved: share of the user text's units that noise really moved.
        seconds: from start to end; of a resumed run, of its last part.
    """

    run: Run
    steps: int
    train_loss: float
    eval_before: float | None
    eval_after: float | None
    share_moved: float
    seconds: float


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM, with a checkpoint saved."""


def train(
    config: TrainConfig,
    reporter: Reporter,
    *,
    runs: Path = DEFAULT_RUNS,
    name: str | None = None,
    offline: bool = False,
) -> TrainResult:
    """Train an adapter as a new run under `runs`; without a name, `<base>-<preset>-001`, `-002`, ...

    Raises:
        UserError: the model, the data or the run's place cannot be used.
        WorkError: no space left, a failed download, a loss that is no number.
        Interrupted: stopped; a checkpoint is saved.
    """
    clock = Clock()
    with clock.part("data"):
        corpus = load_corpus(config)
    with clock.part("base"):
        found = base.find(config.model, offline=offline)
        found.parameters()
    run = create(runs, name, stem=f"{found.name}-{config.preset}")
    try:
        with locked(run):
            prepared = prepare(config, found, corpus, reporter, clock)
            manifest = _first_manifest(run, prepared, clock)
            return _work(run, prepared, manifest, reporter, clock)
    except BaseException:
        if not run.manifest.exists():  # nothing was trained yet
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def resume(run: Run, reporter: Reporter, *, offline: bool = False) -> TrainResult:
    """Go on with an unfinished run from its last whole checkpoint, to the adapter it would have had.

    Raises:
        UserError: it is finished, being trained elsewhere, or its base or data have changed.
    """
    clock = Clock()
    manifest = run.read_manifest()
    if manifest.get("status") == "finished":
        raise UserError(f"{run.name} is finished", "there is nothing to resume; start another with `ftllm train`")
    with locked(run):
        config = resolve([read_yaml(run.config)])
        with clock.part("data"):
            corpus = load_corpus(config)
            _require_same("data", manifest.get("data"), list(corpus.files))
        with clock.part("base"):
            found = base.find(config.model, offline=offline)
            _require_same("base", manifest.get("base"), found.record())
        prepared = prepare(config, found, corpus, reporter, clock)
        manifest.setdefault("resumed", []).append({"at": now(), **environment()})
        return _work(run, prepared, manifest | {"status": "running"}, reporter, clock)


def _require_same(what: str, before: Any, after: Any) -> None:
    if before != after:
        raise UserError(f"the {what} has changed since this run began", "restore the files, or start a new run")


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run for this process.

    Raises:
        UserError: another process is training it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(run.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{run.name} is being trained by another process"
            raise UserError(message, "wait for it, or stop it first") from None
        yield
    finally:
        os.close(descriptor)


def _first_manifest(run: Run, prepared: Prepared, clock: Clock) -> dict[str, Any]:
    """What is known before training; written when the weights are loaded."""
    config, plan, device = prepared.config, prepared.plan, prepared.device
    with clock.part("hashes"):
        record = prepared.base.record()
    return {
        "status": "running",
        "name": run.name,
        "started": now(),
        "finished": None,
        "base": record,
        "data": list(prepared.corpus.files),
        "config": prepared.decided.model_dump(mode="json"),
        "seed": config.seed,
        "backend": prepared.backend,
        "device": device.kind,
        "threads": backend.threads(),
        "precision": {
            "weights": "nf4" if device.four_bit else device.precision,
            "compute": device.precision,
            "adapter": "float32",
        },
        "steps": prepared.steps,
        "rows": {
            "training": len(plan.units),
            "held_out": len(prepared.corpus.held_out),
            "tokens": plan.tokens,
            "trained_tokens": plan.trained,
            "longest": plan.longest,
            "dropped": [source for source, _ in plan.dropped],
            "cut": [source for source, _ in plan.cut],
            "masked": list(plan.masked),
        },
        "noise": {
            "unit": config.noise.unit,
            "share_moved": round(plan.share_moved, 6),
            "moved": plan.moved,
            "units": plan.units_of_text,
        },
        "results": {},
        **environment(),
    }


def _work(run: Run, prepared: Prepared, manifest: dict[str, Any], reporter: Reporter, clock: Clock) -> TrainResult:
    """Load, measure, train, measure, save; the manifest says at any moment how far it came."""
    from ftllm.train.metrics import Metrics

    with clock.part("libraries"):
        from ftllm.train import trainer as training
    with clock.part("load"):
        model = backend.load(prepared.backend, prepared.base, prepared.config, prepared.device)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    checkpoints.require_space(run.path, 4 * trainable * (1 + 3 * 3) + 2**20)
    checkpoint = checkpoints.latest(run.checkpoints, reporter.warn)
    step = checkpoint[0] if checkpoint else 0
    manifest["trainable_parameters"] = trainable
    announce(run, prepared, manifest, step, reporter)
    if not run.config.exists():
        write_text(run.config, _header(run) + to_yaml(prepared.decided))
    run.write_manifest(manifest)
    table = training.Table(prepared.rows, prepared.plan)
    metrics = Metrics(run.metrics, step)
    try:
        with reporter.task("training", prepared.steps) as task, _stopping(reporter) as stopping:
            watcher = training.Watcher(table, metrics, display(reporter, task), stopping)
            hf = prepared.backend == "hf"
            trainer = training.make(
                model,
                prepared.tokenizer,
                table,
                watcher,
                prepared.config,
                prepared.device,
                run.checkpoints,
                packing=hf and prepared.device.kind == "cpu",
                checkpointing=hf and prepared.config.gradient_checkpointing,
            )
            held_out = prepared.rows.held_out()
            if held_out and "eval_before" not in manifest["results"]:
                with clock.part("eval"):
                    before = _likelihood(model, held_out)
                manifest["results"] |= {"eval_before": before.per_token, "eval_tokens": before.tokens}
                run.write_manifest(manifest)
            with clock.part("train"):
                training.run(trainer, checkpoint, prepared.steps)
        if trainer.state.global_step < prepared.steps:
            raise Interrupted
        if held_out:
            with clock.part("eval"):
                manifest["results"]["eval_nll"] = _likelihood(model, held_out).per_token
        with clock.part("save"):
            _publish_adapter(run, model, prepared.base, training.save_adapter)
    except KeyboardInterrupt:
        run.write_manifest(manifest | {"status": "interrupted"})
        _say_how_to_go_on(run, reporter)
        raise
    except Exception as error:
        with _best_effort():
            run.write_manifest(manifest | {"status": "failed", "error": f"{type(error).__name__}: {error}"})
        raise
    manifest["results"] |= {
        "steps": prepared.steps,
        "train_loss": metrics.train_loss,
        "peak_memory_bytes": backend.peak_memory(prepared.device),
    }
    clock.timings["rows_in_training"] = round(table.seconds, 3)
    manifest |= {"status": "finished", "finished": now(), "timings": clock.timings | {"total": clock.seconds}}
    run.write_manifest(manifest)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    (run.path / ".lock").unlink(missing_ok=True)
    results = manifest["results"]
    return TrainResult(
        run,
        prepared.steps,
        results["train_loss"],
        results.get("eval_before"),
        results.get("eval_nll"),
        prepared.plan.share_moved,
        clock.seconds,
    )


def _header(run: Run) -> str:
    return f"# The configuration of {run.name}. Training from it again gives the same adapter on the same machine.\n"


@contextmanager
def _stopping(reporter: Reporter) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM asked to stop; a second one stops at once."""
    asked: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        reporter.say("stopping after this step; Ctrl-C again stops at once, without a checkpoint")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_how_to_go_on(run: Run, reporter: Reporter) -> None:
    found = checkpoints.latest(run.checkpoints, reporter.warn)
    where = f"a checkpoint of step {found[0]} is saved" if found else "there is no checkpoint yet"
    place = "" if run.path.parent == DEFAULT_RUNS.resolve() else f" --runs {run.path.parent}"
    command = f"ftllm train --resume --name {run.name}{place}"
    reporter.say(f"{where}; go on with: {command}")
    reporter.event("interrupted", run=str(run.path), step=found[0] if found else 0, resume=command)


@contextmanager
def _best_effort() -> Iterator[None]:
    """What is tried on the way out must not hide the error that led there."""
    with suppress(OSError, UserError):
        yield


def _likelihood(model: Any, rows: list[Any]) -> Any:
    from ftllm.likelihood import torch_likelihood

    return torch_likelihood(model, rows)


def _publish_adapter(run: Run, model: Any, found: Base, save: Callable[[Any, Path], None]) -> None:
    """The adapter as plain peft, vLLM and export take it: weights, configuration, the base's tokenizer files."""
    with checkpoints.whole_directory(run.adapter) as directory:
        save(model, directory)
        path = directory / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": found.reference, "revision": found.revision}
        if isinstance(config.get("target_modules"), list):
            config["target_modules"].sort()  # a set in peft: its order would differ from run to run
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (directory / "adapter_model.safetensors").chmod(path.stat().st_mode)  # safetensors makes it the owner's alone
        found.copy_tokenizer(directory)
