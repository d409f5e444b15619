"""A training from its configuration to a finished run, and an interrupted one to its end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftllm.conversations import Conversation
from ftllm.errors import UserError
from ftllm.files import write_text
from ftllm.hubfiles import is_offline
from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS, LOCK, Run, create, environment, locked, now
from ftllm.train import adapter, backend, base, checkpoints, lineage, manifest, report
from ftllm.train.config import TrainConfig, resolve, to_yaml
from ftllm.train.corpus import load_corpus
from ftllm.train.display import Display, announce
from ftllm.train.heldout import HeldOut
from ftllm.train.interrupt import Interrupted, say_how_to_go_on, stopping
from ftllm.train.memory import keep_close
from ftllm.train.metrics import Metrics, read_state
from ftllm.train.preflight import needs
from ftllm.train.prepare import Clock, Prepared, prepare
from ftllm.train.processes import Processes, here, together
from ftllm.train.samples import Answers
from ftllm.train.settings import read_yaml
from ftllm.train.trackers import Track, tracking


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
        adapter_step: the step whose adapter was kept.
    """

    run: Run
    steps: int
    train_loss: float
    eval_before: float | None
    eval_after: float | None
    share_moved: float
    seconds: float
    adapter_step: int


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
    processes = here()
    processes.join()
    config = config.model_copy(update={"date": processes.told(lambda: config.today)})  # midnight comes at any moment
    with clock.part("data"):
        corpus = load_corpus(config, offline=offline, say=reporter.say)
    with clock.part("base"):
        found = base.find(config.model, offline=offline)
        found.parameters()
    run = processes.told(lambda: create(runs, name, stem=f"{found.name}-{config.preset}"))
    try:
        with reporter.alone(), together(processes, run), _held(run, processes):
            prepared = prepare(config, found, corpus, reporter, clock)
            with clock.part("hashes"):
                record = processes.told(lambda: manifest.first(run, prepared))
            return _work(run, prepared, record, reporter, clock, offline=is_offline(offline))
    except BaseException:
        if processes.first and not run.manifest.exists():  # nothing was trained yet
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def resume(run: Run, reporter: Reporter, *, offline: bool = False) -> TrainResult:
    """Go on with an unfinished run from its last whole checkpoint, to the adapter it would have had.

    Raises:
        UserError: it is finished, being trained elsewhere, was trained by another number of processes, or its base,
            parent or data have changed.
    """
    clock = Clock()
    processes = here()
    processes.join()
    record = run.read_manifest()
    if record.get("status") == "finished":
        raise UserError(f"{run.name} is finished", "there is nothing to resume; start another with `ftllm train`")
    if record.get("processes", 1) != processes.count:
        message = f"{run.name} was trained by {record.get('processes', 1)} processes, and this is {processes.count}"
        raise UserError(message, "start as many as it had: a step takes a batch from each")
    with reporter.alone(), together(processes, run), _held(run, processes):
        config = resolve([read_yaml(run.config)])
        with clock.part("data"):
            corpus = load_corpus(config, offline=offline, say=reporter.say)
            manifest.require_same("data", record.get("data"), list(corpus.files))
        with clock.part("base"):
            found = base.find(config.model, offline=offline)
            processes.told(lambda: manifest.require_same("base", record.get("base"), found.record()))
        prepared = prepare(config, found, corpus, reporter, clock)
        manifest.require_same("parent run", record.get("from"), prepared.parent.record() if prepared.parent else None)
        record.setdefault("resumed", []).append({"at": now(), **environment()})
        record.pop("error", None)
        return _work(run, prepared, record | {"status": "running"}, reporter, clock, offline=is_offline(offline))


@contextmanager
def _held(run: Run, processes: Processes) -> Iterator[None]:
    """Hold the run, in the first process for all of them."""
    with ExitStack() as stack:
        processes.told(lambda: stack.enter_context(locked(run)))
        yield


@dataclass(frozen=True)
class _Outcome:
    """What came of a training's steps.

    Attributes:
        reached: steps done, in all parts of a resumed run.
        metrics: of them.
        best: the line of metrics whose adapter is kept; None where nothing was measured.
        samples: answers before and after.
        drawing: seconds spent on noise and rendering.
        tensors: the adapter, put together, where it was split over processes.
    """

    reached: int
    metrics: Metrics
    best: dict[str, Any] | None
    samples: list[dict[str, Any]]
    drawing: float
    tensors: dict[str, Any] | None


def _work(
    run: Run, prepared: Prepared, record: dict[str, Any], reporter: Reporter, clock: Clock, *, offline: bool
) -> TrainResult:
    """Load, train, save; the manifest says at any moment how far it came."""
    config, processes = prepared.config, prepared.processes
    with clock.part("preflight"):
        needed = processes.told(lambda: needs(prepared, run.path))
        if keep_close(needed.memory, prepared.device):
            reporter.say(
                "memory is short here: it is given back as soon as it is free, which takes a quarter more time"
            )
    with clock.part("load"):
        shaped = config.model_copy(update={"lora": prepared.lora})
        model = backend.load(prepared.backend, prepared.base, shaped, prepared.device)
        kept = lineage.start(model, prepared.parent, config.lora) if prepared.parent else []
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    record["trainable_parameters"] = trainable - sum(part.values.numel() for part in kept)
    processes.told(lambda: checkpoints.require_space(run.checkpoints, needed.disk))
    checkpoint = processes.told(lambda: checkpoints.latest(run.checkpoints, reporter.warn))
    announce(run, prepared, needed, record, checkpoint[0] if checkpoint else 0, reporter)

    def write(**changes: Any) -> None:
        if processes.first:
            run.write_manifest(record | changes)

    if processes.first and not run.config.exists():
        write_text(run.config, _header(run) + to_yaml(prepared.decided))
    if processes.first and prepared.held_out:
        write_text(run.held_out, _jsonl(prepared.corpus.held_out))
    write()
    step = checkpoint[0] if checkpoint else 0
    try:
        with tracking(config.report_to, run, record["config"], step, reporter, processes, offline=offline) as track:
            outcome = _steps(run, prepared, model, kept, checkpoint, record["results"], write, track, reporter, clock)
        if processes.first:
            with clock.part("save"):
                adapter.publish(run, model, prepared.base, record, outcome.tensors)
    except KeyboardInterrupt:
        write(status="interrupted")
        if processes.first:
            say_how_to_go_on(run, reporter, processes)
        raise
    except Exception as error:
        with suppress(OSError, UserError):  # must not hide the error that led here
            write(status="failed", error=f"{type(error).__name__}: {error}")
        # A full disk, say: what is saved can be gone on with.
        if processes.first and isinstance(error.__cause__, OSError):
            with suppress(OSError, UserError):
                say_how_to_go_on(run, reporter, processes)
        raise
    results = record["results"]
    results |= {
        "steps": outcome.reached,
        "train_loss": outcome.metrics.train_loss,
        "adapter_step": outcome.best["step"] if outcome.best else outcome.reached,
        "peak_memory_bytes": backend.peak_memory(prepared.device),
        "peak_memory_estimate": needed.memory.total,
    }
    if outcome.best:
        results["eval_nll"] = outcome.best["eval_nll"]
    clock.timings["rows_in_training"] = round(outcome.drawing, 3)
    record |= {"finished": now(), "timings": clock.timings | {"total": clock.seconds}}
    if processes.first:
        report.write(run, record, outcome.samples)
        write(status="finished")
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        (run.path / LOCK).unlink(missing_ok=True)
    processes.leave()
    return TrainResult(
        run,
        outcome.reached,
        results["train_loss"],
        results.get("eval_before"),
        results.get("eval_nll"),
        prepared.plan.share_moved,
        clock.seconds,
        results["adapter_step"],
    )


def _steps(
    run: Run,
    prepared: Prepared,
    model: Any,
    kept: list[lineage.Kept],
    checkpoint: tuple[int, Path] | None,
    results: dict[str, Any],
    write: Callable[[], None],
    track: Track,
    reporter: Reporter,
    clock: Clock,
) -> _Outcome:
    """Measure, train, go back to the best adapter, and let the model answer before and after.

    Args:
        run: where checkpoints and metrics go.
        prepared: what is trained.
        model: with the adapter as it begins.
        kept: parts of it that are not trained.
        checkpoint: step and place that training goes on from.
        results: of the manifest; what is measured before goes into them.
        write: writes the manifest.
        track: called with each step.
        reporter: where progress goes.
        clock: for the parts of the time.

    Raises:
        Interrupted: stopped; a checkpoint is saved.
        WorkError: no space left, a loss that is no number.
    """
    with clock.part("libraries"):
        from ftllm.train import trainer as training
        from ftllm.train.table import Table
    config, processes = prepared.config, prepared.processes
    multiple = config.batch_size * processes.count if processes.count > 1 else 1
    table = Table(prepared.rows, prepared.plan, config.seed, multiple)
    state = read_state(checkpoint[1]) if checkpoint else None
    metrics = Metrics(run.metrics if processes.first else None, config.log_steps, state)
    with reporter.task("training", prepared.steps) as task, stopping(reporter, run, processes) as asked:
        every = config.eval_steps or prepared.steps_per_epoch
        held_out = HeldOut(prepared.held_out, every, config.patience, config.keep == "best", task.remark)
        display = Display(reporter, task, metrics, prepared)

        def show(reading: dict[str, Any]) -> None:
            display.show(reading)
            track(reading)

        watcher = training.Watcher(table, metrics, held_out, run.checkpoints, show, asked, processes)
        trainer = training.make(model, prepared, table, watcher, run.checkpoints)
        trainer.add_callback(training.Keeper(kept))
        answers = Answers(run, prepared, task.remark)

        def before() -> None:
            with clock.part("eval"):
                if held_out.rows and "eval_before" not in results:
                    found = held_out.likelihood(model, processes)
                    results.update(eval_before=found.per_token, eval_tokens=found.tokens)
                    write()
                if processes.first or processes.sharded:
                    answers.take("before", model, processes)

        if processes.sharded:  # it is split, and can run, when training begins
            watcher.before = before
        else:
            before()
        with clock.part("train"):
            reached = training.run(trainer, checkpoint, prepared.steps, config.patience)
        if reached < prepared.steps and not metrics.exhausted(config.patience):
            raise Interrupted
        last = best = metrics.measured[-1] if held_out.rows else None
        if held_out.rows and config.keep == "best":
            best = metrics.best
        if processes.first or processes.sharded:
            if last and best and best is not last:
                training.go_back(trainer, checkpoints.best(run.checkpoints, best["step"]))
            with clock.part("eval"):
                answers.take("after", model, processes)
    return _Outcome(reached, metrics, best, answers.samples, table.seconds, trainer.adapter_tensors())


def _jsonl(conversations: Iterable[Conversation]) -> str:
    """Conversations as data that `ftllm.data` reads, each with where it came from."""
    rows = (
        {"messages": [asdict(message) for message in conversation.messages], "source": conversation.source}
        for conversation in conversations
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _header(run: Run) -> str:
    return f"# The configuration of {run.name}. Training from it again gives the same adapter on the same machine.\n"
