"""Settings as flat dotted keys, each with where it came from, so that every complaint can name its place.

`learning_rate` and `lora.rank` are keys; a place is `ft.yaml:12`, `--set lora.rank` or a preset's name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import ErrorDetails

from ftllm.errors import UserError

# What other trainers call the same thing.
SYNONYMS = {
    "lr": "learning_rate",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora.r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "use_rslora": "lora.rslora",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "batch": "batch_size",
    "micro_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "context_length": "max_length",
    "base_model": "model",
    "model_name": "model",
    "model_name_or_path": "model",
    "dataset": "data",
    "datasets": "data",
    "train_data": "data",
    "val_data": "eval",
    "eval_data": "eval",
    "validation": "eval",
    "warmup": "warmup_steps",
    "optim": "optimizer",
    "logging_steps": "log_steps",
    "train_on_inputs": "loss",
    "burden": "noise.ratio",
    "burden_ratio": "noise.ratio",
}


@dataclass(frozen=True)
class Setting:
    """A value and the place it was given."""

    value: Any
    place: str


Settings = dict[str, Setting]


def read_yaml(path: Path) -> Settings:
    """The settings of a YAML file, flattened.

    Raises:
        UserError: it cannot be read, is not YAML, is not a mapping, or gives a key twice; with `file:line`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "give the path of a YAML configuration") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory", "give a YAML file; a model directory goes to --model") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}", "save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not YAML: {error.problem}", "check the indentation and the quotes") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}", "check for stray control characters") from None
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise UserError(
            f"{path}:{line}: settings expected, as in `learning_rate: 2.0e-5`", "see `ftllm train --print-config`"
        )
    return _flatten_node(node, path, "", yaml.SafeLoader(""))


def _flatten_node(node: yaml.MappingNode, path: Path, prefix: str, loader: yaml.SafeLoader) -> Settings:
    flat: Settings = {}
    for key_node, value_node in node.value:
        place = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{place}: a key must be a word", "see `ftllm train --print-config`")
        key = prefix + str(key_node.value)
        if isinstance(value_node, yaml.MappingNode):
            found = _flatten_node(value_node, path, key + ".", loader)
        else:
            try:
                found = {key: Setting(loader.construct_object(value_node, deep=True), place)}
            except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
                problem = getattr(error, "problem", None) or error
                raise UserError(f"{place}: {key} cannot be read: {problem}", "write a plain value") from None
        for name, setting in found.items():
            if name in flat:
                raise UserError(f"{setting.place}: {name} is given twice", f"it is first given at {flat[name].place}")
            flat[name] = setting
    return flat


def read_assignment(text: str) -> tuple[str, Setting]:
    """`learning_rate=1e-4` as given to `--set`; the value is read as YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {text}: key=value expected", "for example --set learning_rate=1e-4")
    try:
        return key, Setting(yaml.safe_load(value) if value.strip() else None, f"--set {key}")
    except yaml.YAMLError:
        raise UserError(f"--set {text}: the value is not YAML", "quote it, as in --set 'name=\"a: b\"'") from None
    except ValueError as error:  # a date that no calendar has
        raise UserError(f"--set {text}: the value cannot be read: {error}", "dates are written YYYY-MM-DD") from None


def check_keys(settings: Mapping[str, Setting], known: Iterable[str]) -> None:
    """Refuse the first key that nothing reads.

    Raises:
        UserError: with its place and the nearest key there is.
    """
    keys = sorted(known)
    groups = {key.rpartition(".")[0] for key in keys} - {""}
    for key, setting in settings.items():
        if key in keys:
            continue
        if key in groups:
            members = ", ".join(name for name in keys if name.startswith(key + "."))
            raise UserError(f"{setting.place}: {key} is a group of settings, not one", f"it holds {members}")
        near = nearest(key, keys)
        hint = f"did you mean {near}?" if near else "`ftllm train --print-config` lists every key"
        raise UserError(f"{setting.place}: unknown key {key}", hint)


# What pydantic misses, by the first word of its errors' names, and by the names of those with a bound.
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "date": "a date such as 2026-11-29",
    "string": "text",
    "tuple": "a list",
}
BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}
LENGTHS = {
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def problem_of(errors: Sequence[ErrorDetails], value: Any) -> str:
    """What is wrong with a value, in a person's words.

    Args:
        errors: pydantic's, of this value: one for each member of a union, and for each item of a list.
        value: as it was given.
    """
    said = next((error for error in errors if error["type"] == "value_error"), None)
    if said is not None:  # by a validator of ours
        return said["msg"].removeprefix("Value error, ")
    # A list from which wrong items are taken may be too short as well.
    errors = [error for error in errors if error["type"] not in LENGTHS] or errors
    wanted = ", or ".join(dict.fromkeys(map(_wanted, errors)))
    return f"{'each' if isinstance(value, list) and _inside(errors[0]) else 'it'} must be {wanted}"


def _inside(error: ErrorDetails) -> bool:
    """Whether it is about an item of a list."""
    return any(isinstance(part, int) for part in error["loc"])


def _wanted(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if bound := (BOUNDS | LENGTHS).get(kind):
        return bound.format_map({name: _whole(number) for name, number in context.items()})
    return WANTED[kind.partition("_")[0]]


def _whole(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


def nearest(key: str, keys: list[str]) -> str | None:
    """The known key that `key` most likely means; None when nothing is near."""
    lowered = key.lower().replace("-", "_")
    if SYNONYMS.get(lowered) in keys:
        return SYNONYMS[lowered]
    same_leaf = [name for name in keys if name.rpartition(".")[2] == lowered.rpartition(".")[2]]
    if same_leaf:
        return same_leaf[0]
    whole = difflib.get_close_matches(lowered, keys, n=1, cutoff=0.6)
    if whole:
        return whole[0]
    leaves = {name.rpartition(".")[2]: name for name in keys}
    leaf = difflib.get_close_matches(lowered.rpartition(".")[2], list(leaves), n=1, cutoff=0.7)
    return leaves[leaf[0]] if leaf else None


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested dictionaries: `{"lora.rank": 8}` -> `{"lora": {"rank": 8}}`."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return tree
