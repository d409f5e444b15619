"""Every key of the configuration is read: changed alone, it changes what is trained, how, or what a run holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from trainings import dated_copy

from ftllm.errors import UserError
from ftllm.progress import Reporter
from ftllm.train import backend, base
from ftllm.train.config import TrainConfig, keys, resolve
from ftllm.train.corpus import load_corpus
from ftllm.train.data import Rows
from ftllm.train.metrics import read
from ftllm.train.prepare import Clock, prepare
from ftllm.train.settings import Setting
from ftllm.train.stage import train
from ftllm.vocabulary import DirectoryVocabulary, from_directory

LONG = "Please tell me in `a few words` what 12 + 34 is. Then tell me why it is so. And then say what the cat eats."


@dataclass(frozen=True)
class Change:
    """A key given another value than in `BEFORE`.

    Attributes:
        value: the other one.
        seen: what must differ for it: a name of `SEEN`.
        given: other settings, in both cases.
    """

    value: Any
    seen: str
    given: dict[str, Any] = field(default_factory=dict)


# Everything a key may depend on is on: held-out rows, a bad row, a long one, two user turns, code and numbers.
BEFORE = {"eval": "25%", "bad_rows": "drop", "max_length": 120, "warmup_steps": 1, "epochs": 2, "samples": 1,
          "sample_tokens": 2, "batch_size": 2, "learning_rate": 5e-2, "save_steps": 0}  # fmt: skip
OVERSHOOTING = {"epochs": 6, "schedule": "constant", "learning_rate": 0.3, "samples": 0}
CHANGES = {
    "model": Change("nowhere/at/all", "base"),
    "data": Change("other.jsonl", "rows"),
    "eval": Change("50%", "rows"),
    "eval_steps": Change(1, "run"),
    "patience": Change(1, "run", OVERSHOOTING),
    "keep": Change("last", "run", {**OVERSHOOTING, "patience": 1}),
    "samples": Change(0, "run"),
    "sample_tokens": Change(3, "run"),
    "stage": Change("sft", "rows"),
    "from_run": Change("nowhere", "trainer"),
    "from_adapter": Change("merge", "trainer", {"from_run": "a run"}),
    "preset": Change("seed", "name"),
    "backend": Change("unsloth", "backend"),
    "seed": Change(1, "rows"),
    "lora.rank": Change(4, "trainer"),
    "lora.alpha": Change(32.0, "trainer"),
    "lora.dropout": Change(0.5, "trainer"),
    "lora.rslora": Change(True, "trainer"),
    "lora.targets": Change(["mlp"], "trainer"),
    "learning_rate": Change(1e-3, "trainer"),
    "schedule": Change("linear", "trainer"),
    "warmup_steps": Change(2, "trainer"),
    "weight_decay": Change(0.5, "trainer"),
    "optimizer": Change("adamw_8bit", "backend"),
    "max_grad_norm": Change(0.1, "trainer"),
    "epochs": Change(3, "trainer"),
    "max_steps": Change(1, "run"),
    "batch_size": Change(1, "trainer"),
    "gradient_accumulation": Change(2, "trainer"),
    "max_length": Change(1000, "rows"),
    "too_long": Change("cut", "rows"),
    "bad_rows": Change("stop", "rows"),
    "loss": Change("full", "rows"),
    "date": Change("2020-02-29", "dated"),
    "noise.unit": Change("token", "rows"),
    "noise.ratio": Change(0.2, "rows"),
    "noise.range": Change("training", "rows", {"noise.ratio": [0.1, 0.9]}),
    "noise.protect": Change(False, "rows"),
    "noise.per_epoch": Change(False, "rows"),
    "noise.turns": Change("last", "rows"),
    "noise.clean_share": Change(1.0, "rows"),
    "noise.neftune_alpha": Change(5.0, "trainer"),
    "precision": Change("bfloat16", "backend"),
    "load_in_4bit": Change(True, "backend"),
    "gradient_checkpointing": Change(False, "trainer"),
    "log_steps": Change(2, "run"),
    "report_to": Change("tensorboard", "run"),
    "save_steps": Change(1, "trainer"),
}


@dataclass(frozen=True)
class Place:
    """What the configurations of these tests name."""

    directory: Path
    vocabulary: DirectoryVocabulary
    runs: Path


def rows(config: TrainConfig, place: Place) -> Any:
    """What is trained in each of three epochs, what is left out, and what is measured on."""
    drawn = Rows(config, load_corpus(config), place.vocabulary)
    plan = drawn.plan()
    epochs = [[drawn.draw(unit, epoch) for unit in plan.units] for epoch in range(3)]
    return epochs, plan.dropped, plan.cut, plan.refused, drawn.held_out()


def dated(config: TrainConfig, place: Place) -> Any:
    """A row as a template that writes the date has it."""
    found = base.find(str(dated_copy(Path(config.model), place.directory / "dated")))
    prepared = prepare(config, found, load_corpus(config), Reporter(quiet=True), Clock())
    return prepared.rows.draw(prepared.plan.units[0], 0)


def trainer(config: TrainConfig, place: Place) -> Any:
    """What TRL and PEFT are given."""
    from ftllm.train import trainer as training
    from ftllm.train.table import Table

    found = base.find(config.model)
    prepared = prepare(config, found, load_corpus(config), Reporter(quiet=True), Clock())
    shaped = config.model_copy(update={"lora": prepared.lora})
    model = backend.load(prepared.backend, found, shaped, prepared.device)
    table = Table(prepared.rows, prepared.plan, config.seed)
    show = (lambda _: None, lambda: False)
    watcher = training.Watcher(table, None, None, place.directory, *show, prepared.processes)  # type: ignore[arg-type]
    made = training.make(model, prepared, table, watcher, place.directory / "checkpoints")
    shape = {name: str(value) for name, value in asdict(model.peft_config["default"]).items()}
    return made.args.to_dict(), shape | {"target_modules": sorted(model.peft_config["default"].target_modules)}


def machine(config: TrainConfig, _: Place) -> Any:
    return backend.choose(config), backend.device(config, 1000)


def run(config: TrainConfig, place: Place) -> Any:
    """What a whole run holds, times aside."""
    result = train(config, Reporter(quiet=True), runs=place.runs)
    lines = [[line["step"], line["loss"], line.get("eval_nll")] for line in read(result.run.metrics)]
    adapter = sha256((result.run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    samples = result.run.path / "samples.json"
    files = sorted(path.name for path in result.run.path.iterdir())
    return lines, adapter, result.adapter_step, files, samples.read_text() if samples.exists() else None


def name(config: TrainConfig, place: Place) -> Any:
    return train(config.model_copy(update={"max_steps": 1}), Reporter(quiet=True), runs=place.runs).run.name[:-4]


SEEN: dict[str, Callable[[TrainConfig, Place], Any]] = {
    "rows": rows,
    "dated": dated,
    "trainer": trainer,
    "base": lambda config, _: base.find(config.model).path,
    "backend": machine,
    "run": run,
    "name": name,
}


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    import torch

    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("every")
    talk = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "milk"}]
    data: list[Any] = [{"messages": [*talk, {"role": "user", "content": f"{word} {LONG}"}, *talk[1:]]} for word in "ab"]
    texts = [f"{word} {LONG[:60]}" for word in "cdefg"] + [LONG * 3]
    data += [{"messages": [{"role": "user", "content": text}, *talk[1:]]} for text in texts]
    data.append({"messages": [{"role": "user", "content": "no answer"}]})
    for name, lines in (("data.jsonl", data), ("other.jsonl", data[1:])):
        (directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Place(directory, from_directory(tiny), directory / "runs")


@pytest.fixture(scope="module")
def seen(place: Place, tiny: Path) -> Callable[[str, dict[str, Any]], Any]:
    """What is seen of a configuration; a refusal is its message. Each is looked at once."""
    known: dict[str, Any] = {}

    def look(what: str, values: dict[str, Any]) -> Any:
        values = {"model": str(tiny), "data": "data.jsonl", **BEFORE, **values}
        values["data"] = str(place.directory / values["data"])
        if values.get("from_run") == "a run":
            values["from_run"] = look("a run", {"max_steps": 1})
        if (key := json.dumps([what, values])) not in known:
            config = resolve([{key: Setting(value, "test") for key, value in values.items()}])
            try:
                if what == "a run":
                    known[key] = str(train(config, Reporter(quiet=True), runs=place.runs).run.path)
                else:
                    known[key] = SEEN[what](config, place)
            except UserError as error:
                known[key] = error.message
        return known[key]

    return look


def test_no_key_is_forgotten() -> None:
    assert list(CHANGES) == list(keys())


@pytest.mark.parametrize("key", CHANGES)
def test_changed_alone_it_changes_something(seen: Callable[[str, dict[str, Any]], Any], key: str) -> None:
    change = CHANGES[key]
    before = seen(change.seen, change.given)
    assert not isinstance(before, str) or change.seen == "name", before
    assert before != seen(change.seen, {**change.given, key: change.value})


def test_looking_twice_sees_the_same(place: Place, tiny: Path) -> None:
    """Else a difference would prove nothing."""
    given = {"model": str(tiny), "data": str(place.directory / "data.jsonl"), **BEFORE}
    config = resolve([{key: Setting(value, "test") for key, value in given.items()}])
    for look in (rows, trainer, run):
        assert look(config, place) == look(config, place)
