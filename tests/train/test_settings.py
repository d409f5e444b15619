"""Configuration: places in complaints, presets, round trips."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml

from ftllm.errors import UserError
from ftllm.train.config import PRESETS, keys, rebased, resolve, to_yaml
from ftllm.train.settings import Setting, Settings, nearest, read_assignment, read_yaml


def settings(**values: object) -> Settings:
    return {key.replace("__", "."): Setting(value, "test") for key, value in values.items()}


GIVEN = settings(model="models/nano", data=["a.jsonl"])


def refusal(*layers: Settings) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve(layers)
    return caught.value


def test_unknown_key_names_file_line_and_the_key_meant(tmp_path: Path) -> None:
    path = tmp_path / "ft.yaml"
    path.write_text("model: m\ndata: d.jsonl\nlora:\n  rnak: 4\n")
    error = refusal(read_yaml(path))
    assert error.message == f"{path}:4: unknown key lora.rnak"
    assert error.hint == "did you mean lora.rank?"
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("learning_rte", "learning_rate"),
        ("lr", "learning_rate"),
        ("rank", "lora.rank"),
        ("lora_r", "lora.rank"),
        ("num_train_epochs", "epochs"),
        ("max_seq_length", "max_length"),
        ("noise.ration", "noise.ratio"),
        ("Batch-Size", "batch_size"),
        ("qqqqq", None),
    ],
)
def test_did_you_mean(given: str, meant: str | None) -> None:
    assert nearest(given, sorted(keys())) == meant


def test_group_given_a_value() -> None:
    error = refusal(GIVEN, settings(noise="none"))
    assert error.message == "test: noise is a group of settings, not one"
    assert "noise.unit" in error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nlora: [1\n", ":3: not YAML"),
        ("model: m\n\tdata: d\n", ":2: not YAML"),
        ("- model\n", ":1: settings expected"),
        ("seed: 1\nseed: 2\n", ":2: seed is given twice"),
        ("lora:\n  rank: 1\nlora.rank: 2\n", ":3: lora.rank is given twice"),
        ("model: m\ndate: 2026-13-01\n", ":2: date cannot be read: month must be in 1..12"),
    ],
)
def test_yaml_errors_have_a_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert caught.value.message.startswith(f"{path}{message}")


def test_yaml_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"model: \xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 7"):
        read_yaml(path)
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", "fast", 'is "fast": it must be a number'),
        ("learning_rate", 0, "is 0: it must be more than 0"),
        ("learning_rate", float("nan"), "is NaN: it must be a finite number"),
        ("learning_rate", None, "has no value: it must be a number"),
        ("epochs", 1.5, "is 1.5: it must be a whole number"),
        ("seed", 2**32, "is 4294967296: it must be less than 4294967296"),
        ("preset", "fta", 'is "fta": it must be ft, seed or sft'),
        ("load_in_4bit", "maybe", 'is "maybe": it must be auto, or true or false'),
        ("date", "tomorrow", 'is "tomorrow": it must be a date such as 2026-11-29, or auto'),
        ("lora.targets", ["attention", "head"], 'is ["attention", "head"]: each must be attention or mlp'),
        ("report_to", "mlflow", 'is "mlflow": it must be tensorboard, wandb or trackio'),
        ("noise.ratio", 1.2, "is 1.2: a share lies between 0 and 1 (0.7 or 70%)"),
        ("noise.ratio", ["20%", "120%"], 'is ["20%", "120%"]: a share lies between 0 and 1 (0.7 or 70%)'),
        ("noise.ratio", "much", 'is "much": it must be a number'),
        ("noise.ratio", [0.1, 0.2, 0.3], "is [0.1, 0.2, 0.3]: it must be a list of at most 2"),
        ("eval", "150%", 'is "150%": a share of the data lies between 0 and 1 (5%), else it is a file'),
        ("data", [], "is []: it must be a list of at least 1"),
        ("data", [1], "is [1]: each must be text"),
        ("noise.ratio", True, "is true: it must be a number"),
        ("noise.ratio", [0.2, True], "is [0.2, true]: each must be a number"),
        ("lora.rank", True, "is true: it must be a whole number"),
        ("eval", False, "is false: it must be text, or a number"),
    ],
)
def test_wrong_values_name_their_place(key: str, value: object, message: str) -> None:
    error = refusal(GIVEN, {key: Setting(value, "test")})
    assert error.message == f"test: {key} {message}"
    assert error.hint.startswith(f"{key}: ")


def test_no_number_is_read_from_a_switch() -> None:
    """`true` is 1 to Python, and to pydantic."""
    taken = {key for key in keys() if complaint(key, True) is None}
    assert taken == {"gradient_checkpointing", "load_in_4bit", "lora.rslora", "noise.per_epoch", "noise.protect"}


def complaint(key: str, value: object) -> str | None:
    try:
        resolve([GIVEN, {key: Setting(value, "test")}])
    except UserError as error:
        return error.message
    return None


@pytest.mark.parametrize("key", list(keys()))
def test_whatever_a_key_is_given_is_taken_or_refused_by_its_place(key: str) -> None:
    odd = [None, True, -1, 0, 2, 1.5, 1e300, float("inf"), "", "x", "70%", "1_000", [], ["x"], [1, 2, 3], [None]]
    odd += [{"a": 1}, [[1]], b"x", datetime.date(2026, 11, 29), datetime.datetime(2026, 11, 29, 1)]
    complaints = [said for value in odd if (said := complaint(key, value)) is not None]
    assert complaints
    assert all(said.startswith(f"test: {key} ") for said in complaints)


def test_a_share_may_be_given_in_percent() -> None:
    given = dict(map(read_assignment, ("noise.ratio=[20%, 0.7]", "noise.clean_share=12.5%")))
    noise = resolve([GIVEN, given]).noise
    assert (noise.ratio, noise.clean_share) == ((0.2, 0.7), 0.125)
    assert resolve([GIVEN, dict([read_assignment("noise.ratio=70%")])]) == resolve([GIVEN])


def test_model_and_data_are_needed() -> None:
    assert refusal().message == "no model given"
    assert refusal(settings(model="m")).message == "no data given"


def test_presets_are_those_of_the_method() -> None:
    """The table of ft-method: LoRA 8/16/0 everywhere; what differs is noise and loss."""
    ft, seed, sft = (resolve([GIVEN, settings(preset=name)]) for name in ("ft", "seed", "sft"))
    for config in (ft, seed, sft):
        assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 16, 0)
        assert config.lora.targets == ("attention", "mlp")
        assert (config.learning_rate, config.schedule, config.warmup_steps) == (2e-5, "cosine", 25)
        assert (config.weight_decay, config.batch_size, config.gradient_accumulation) == (0.01, 1, 1)
        assert (config.epochs, config.max_length, config.seed) == (3, 4096, 3407)
        assert config.gradient_checkpointing
        assert config.noise.ratio == (0.7,)
        assert config.noise.turns == "all"
    assert (ft.noise.unit, ft.noise.protect, ft.noise.per_epoch, ft.loss) == ("auto", True, True, "assistant")
    assert (seed.noise.unit, seed.noise.protect, seed.noise.per_epoch, seed.loss) == ("card", False, False, "full")
    assert (sft.noise.unit, sft.loss) == ("none", "assistant")
    assert sft.noise.settings() is None
    assert resolve([GIVEN]) == ft


def test_every_preset_sets_the_same_keys() -> None:
    assert len({frozenset(values) for values in PRESETS.values()}) == 1
    for values in PRESETS.values():
        assert set(values) <= set(keys())


def test_later_layers_win_and_a_preset_resets_what_presets_differ_in() -> None:
    file = settings(preset="ft", noise__clean_share=0.5, learning_rate=1e-3, noise__unit="word")
    config = resolve([GIVEN, file])
    assert (config.noise.unit, config.learning_rate) == ("word", 1e-3)
    config = resolve([GIVEN, file, settings(preset="sft")])
    assert (config.preset, config.noise.unit, config.learning_rate) == ("sft", "none", 1e-3)
    config = resolve([GIVEN, file, settings(preset="sft"), settings(noise__unit="auto")])
    assert config.noise.unit == "auto"


def test_assignments_are_yaml() -> None:
    assert read_assignment("learning_rate=1e-4") == ("learning_rate", Setting("1e-4", "--set learning_rate"))
    assert resolve([GIVEN, dict([read_assignment("learning_rate=1e-4")])]).learning_rate == 1e-4
    assert resolve([GIVEN, dict([read_assignment("noise.ratio=[0.2, 0.9]")])]).noise.ratio == (0.2, 0.9)
    assert resolve([GIVEN, dict([read_assignment("eval=5%")])]).eval == "5%"
    assert resolve([GIVEN, dict([read_assignment("eval=")])]).eval is None
    with pytest.raises(UserError, match="key=value expected"):
        read_assignment("seed")
    with pytest.raises(UserError, match="--set date=2026-02-30: the value cannot be read: day is out of range"):
        read_assignment("date=2026-02-30")


def test_printed_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    config = resolve(
        [
            settings(
                model="/a dir/with: colon", data=["/x.jsonl", "/ö #.jsonl"], eval=0.1, learning_rate=1e-7,
                noise__ratio=[0.1, 0.5], noise__range="training", lora__alpha=12.5, load_in_4bit=False,
            )
        ]
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert resolve([read_yaml(path)]) == config
    assert resolve([rebased(read_yaml(path), Path("/elsewhere"))]) == config


def test_printed_configuration_names_and_explains_every_key() -> None:
    text = to_yaml(resolve([GIVEN]))
    tree = yaml.safe_load(text)
    flat = {f"{group}.{key}" if isinstance(value, dict) else group for group, value in tree.items()
            for key in (value if isinstance(value, dict) else [""])}  # fmt: skip
    assert flat == set(keys())
    assert text.count("#") >= len(list(keys()))


def test_paths_are_relative_to_the_file_that_gives_them(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    given = settings(model="base", data=["a.jsonl", "/abs/b.jsonl"], eval="held.jsonl")
    config = resolve([rebased(given, tmp_path)])
    assert config.model == str(tmp_path / "base")
    assert config.data == (str(tmp_path / "a.jsonl"), "/abs/b.jsonl")
    assert config.eval == str(tmp_path / "held.jsonl")
    kept = resolve([rebased(settings(model="org/name@main", data="x.jsonl", eval="5%"), tmp_path)])
    assert (kept.model, kept.eval) == ("org/name@main", "5%")
