"""What a training is made of: every key, its meaning, its default, and the presets.

Precedence, lowest first: the preset, the configuration file, the command line's options, `--set`.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from ftllm.data import sources
from ftllm.errors import UserError
from ftllm.hubfiles import is_repository
from ftllm.noise import Curriculum, NoiseSettings
from ftllm.train.settings import Setting, Settings, check_keys, nested, problem_of
from ftllm.train.values import Group, Share, listed, numbers, share_of, trackers

Preset = Literal["ft", "seed", "sft"]
Backend = Literal["auto", "unsloth", "hf"]
Part = Literal["attention", "mlp"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


class LoraConfig(Group):
    """The low-rank update."""

    rank: int = Field(default=8, ge=1, description="rank of the update")
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the update's input")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) instead (arXiv 2312.03732)")
    targets: Annotated[tuple[Part, ...], BeforeValidator(listed)] = Field(
        default=("attention", "mlp"), min_length=1, description="which linear layers of the language layers are adapted"
    )


class NoiseConfig(Group):
    """The burden laid on user turns; see `ftllm.noise`."""

    unit: Literal["none", "auto", "word", "token", "sentence", "card"] = Field(
        default="auto",
        description="what is shuffled: none, auto (words; characters of scripts without spaces), word, token (the "
        "model's), sentence, or card (pieces between single spaces)",
    )
    ratio: Annotated[tuple[Share, ...], BeforeValidator(numbers)] = Field(
        default=(0.7,),
        min_length=1,
        max_length=2,
        description="share of units chosen (0.7 or 70%), or a range [low, high]",
    )
    range: Literal["row", "training"] = Field(
        default="row",
        description="a range is drawn from for each row, or gone through from first to second over training",
    )
    protect: bool = Field(default=True, description="code, URLs, LaTeX and numbers stay whole and in place")
    per_epoch: bool = Field(
        default=True, description="a fresh permutation every epoch; false: one for the whole training"
    )
    turns: Literal["all", "last"] = Field(default="all", description="which user turns")
    clean_share: Share = Field(default=0.0, description="share of rows left alone")
    neftune_alpha: float = Field(
        default=0.0, ge=0, description="noise on the embeddings (NEFTune, arXiv 2310.05914); 0: none"
    )

    def settings(self) -> NoiseSettings | None:
        """As `ftllm.noise` takes them; None where nothing is shuffled."""
        if self.unit == "none":
            return None
        ratio: float | tuple[float, float] | Curriculum = self.ratio[0]
        if len(self.ratio) == 2:
            ratio = Curriculum(*self.ratio) if self.range == "training" else (self.ratio[0], self.ratio[1])
        return NoiseSettings(
            unit=self.unit,
            ratio=ratio,
            protect=self.protect,
            per_epoch=self.per_epoch,
            turns=self.turns,
            clean_share=self.clean_share,
        )


class TrainConfig(Group):
    """A training, resolved: nothing left to a default that is not written here."""

    model: str = Field(description="the base: a directory, or a Hub repository (org/name or org/name@revision)")
    data: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(
        min_length=1,
        description="files, directories or Hub data sets (org/name:split); =0.5 behind one trains half of its rows, "
        "=2 each row twice an epoch",
    )
    eval: str | float | None = Field(
        default=None,
        description="held out and never noised: a share of the data (5%), or data; its likelihood is measured",
    )
    eval_steps: int = Field(default=0, ge=0, description="steps between two measurements; 0: at the end of each epoch")
    patience: int = Field(default=0, ge=0, description="stop after so many measurements without a better one; 0: never")
    keep: Literal["best", "last"] = Field(
        default="best", description="the adapter kept: of the best measurement, or of the last step"
    )
    samples: int = Field(default=3, ge=0, description="answers shown before and after training")
    sample_tokens: int = Field(default=256, ge=1, description="longest of those answers")
    stage: Literal["ft", "sft"] = Field(
        default="ft", description="ft, or sft, which comes after it and takes the preset sft unless one is given"
    )
    from_run: str | None = Field(
        default=None, description="the run that this one goes on from: its directory or name; its base is taken"
    )
    from_adapter: Literal["same", "merge"] = Field(
        default="same",
        description="same goes on training the adapter of from_run; merge keeps it, as if merged into the base, and "
        "trains a new one: both come out as one adapter for that base",
    )
    preset: Preset = Field(default="ft", description="where the values below come from unless given: ft, seed or sft")
    backend: Backend = Field(
        default="auto", description="auto takes unsloth on a CUDA GPU where it is installed, else hf"
    )
    seed: int = Field(
        default=3407, ge=0, lt=2**32, description="of the adapter's start, the order of rows and the noise"
    )
    lora: LoraConfig = LoraConfig()
    learning_rate: float = Field(default=2e-5, gt=0, description="its highest value")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how the learning rate falls after the warm-up: cosine, linear or constant"
    )
    warmup_steps: int = Field(default=25, ge=0, description="steps in which the learning rate rises from 0")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled weight decay of AdamW")
    optimizer: Literal["auto", "adamw", "adamw_8bit"] = Field(
        default="auto", description="auto is adamw_8bit (paged) on a GPU with bitsandbytes, else adamw"
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradients are clipped to this norm; 0: never")
    epochs: int = Field(default=3, ge=1, description="passes over the data")
    max_steps: int = Field(default=0, ge=0, description="stop after so many steps; 0: by epochs")
    batch_size: int = Field(default=1, ge=1, description="rows a forward pass")
    gradient_accumulation: int = Field(default=1, ge=1, description="forward passes a step")
    max_length: int = Field(default=4096, ge=8, description="longest row in tokens")
    too_long: Literal["drop", "cut"] = Field(
        default="drop",
        description="rows beyond max_length: drop them, or cut their end (and with it the end of the turn)",
    )
    bad_rows: Literal["stop", "drop"] = Field(
        default="stop",
        description="rows that are no conversations, or that cannot be trained whole: stop at the first, or drop them",
    )
    loss: Literal["assistant", "full"] = Field(
        default="assistant", description="tokens that bear loss: the assistant's, or all"
    )
    date: datetime.date | Literal["auto"] = Field(
        default="auto",
        description="YYYY-MM-DD, told to templates that write it (gpt-oss, Llama 3); auto: the day training began",
    )
    noise: NoiseConfig = NoiseConfig()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of base and computation; auto: bfloat16, but float32 for up to 1e9 weights on a CPU",
    )
    load_in_4bit: Literal["auto"] | bool = Field(
        default="auto", description="auto: on a GPU with bitsandbytes; never on a CPU"
    )
    gradient_checkpointing: bool = Field(default=True, description="less memory for about a third more time")
    log_steps: int = Field(default=1, ge=1, description="steps between two lines of metrics.jsonl")
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(trackers)] = Field(
        default=(),
        description="tensorboard, wandb or trackio: where metrics go besides metrics.jsonl; [] is nowhere, and nothing "
        "leaves this machine",
    )
    save_steps: int = Field(default=100, ge=0, description="steps between two checkpoints; 0: only when interrupted")

    @field_validator("eval")
    @classmethod
    def _share(cls, value: str | float | None) -> str | float | None:
        share = None if value is None else share_of(value)
        if share is not None and not 0 < share < 1:
            raise ValueError("a share of the data lies between 0 and 1 (5%), else it is a file")
        return value

    @property
    def today(self) -> datetime.date:
        """The date that chat templates are told."""
        return datetime.date.today() if self.date == "auto" else self.date


# What the presets differ in (the card's method, and what is recommended over it); all else is the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "ft": {"noise.unit": "auto", "noise.protect": True, "noise.per_epoch": True, "loss": "assistant"},
    "seed": {"noise.unit": "card", "noise.protect": False, "noise.per_epoch": False, "loss": "full"},
    "sft": {"noise.unit": "none", "noise.protect": True, "noise.per_epoch": True, "loss": "assistant"},
}


def keys(model: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key there is, in the order of the printed configuration."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def resolve(layers: Sequence[Settings]) -> TrainConfig:
    """The configuration that layers of settings make, later ones winning.

    A preset stands under the other settings of its layer and over earlier layers, so that `--preset sft` does what it
    says to any configuration file.

    Raises:
        UserError: an unknown key, a value of the wrong kind or out of bounds, or no model or data; with the place.
    """
    given: Settings = {}
    for layer in layers:
        check_keys(layer, keys())
        preset, stage = layer.get("preset"), layer.get("stage")
        if preset is None and stage is not None and stage.value != _stage_of(given.get("preset")):
            preset = given["preset"] = stage  # each stage has a preset of its name
        if preset is not None:
            given["stage"] = Setting(_stage_of(preset), preset.place)
            chosen = PRESETS.get(preset.value, {}) if isinstance(preset.value, str) else {}
            given.update({key: Setting(value, preset.place) for key, value in chosen.items()})
        given.update(layer)
    try:
        config = TrainConfig.model_validate(nested({key: setting.value for key, setting in given.items()}))
    except ValidationError as error:
        raise _refusal(error, given) from None
    if config.stage != _stage_of(given.get("preset")):
        raise UserError(
            f"{given['stage'].place}: stage {config.stage} and preset {config.preset} exclude each other",
            "the stage ft has the presets ft and seed, the stage sft has sft",
        )
    return config


def _stage_of(preset: Setting | None) -> str:
    """The stage that a preset belongs to."""
    return "sft" if preset is not None and preset.value == "sft" else "ft"


def _refusal(error: ValidationError, given: Mapping[str, Setting]) -> UserError:
    """The first key that pydantic objects to, as one line with its place."""
    found = error.errors()
    first, key = found[0], _key_of(found[0])
    if first["type"] == "missing":
        return UserError(f"no {key} given", f"name one: --{key} PATH, or `{key}:` in the configuration file")
    place = given[key].place if key in given else key
    value = given[key].value if key in given else first["input"]
    shown = "has no value" if value is None else f"is {json.dumps(value, ensure_ascii=False, default=str)}"
    problem = problem_of([one for one in found if _key_of(one) == key], value)
    return UserError(f"{place}: {key} {shown}: {problem}", describe(key))


def _key_of(error: ErrorDetails) -> str:
    """The key that pydantic objects to, without what it says of list items and members of a union."""
    parts: list[str] = []
    for part in error["loc"]:
        if ".".join([*parts, str(part)]) not in set(keys()) | {"lora", "noise"}:
            break
        parts.append(str(part))
    return ".".join(parts)


def describe(key: str) -> str:
    """A key's meaning, in the words of the printed configuration."""
    model: type[BaseModel] = TrainConfig
    *groups, leaf = key.split(".")
    for group in groups:
        annotation = model.model_fields[group].annotation
        assert isinstance(annotation, type)
        model = annotation
    return f"{key}: {model.model_fields[leaf].description}"


def to_yaml(config: TrainConfig) -> str:
    """The whole configuration as commented YAML; reading it back gives an equal one."""
    return "\n".join(_yaml_lines(config, "")) + "\n"


def _yaml_lines(group: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, indent + "  ")
        else:
            if len(field.description or "") > 60:
                yield f"{indent}# {field.description}"
                yield f"{indent}{name}: {_yaml_value(value)}"
            else:
                yield f"{indent}{name}: {_yaml_value(value)}  # {field.description}"


def _yaml_value(value: Any) -> str:
    """A value on one line, as YAML reads it back (JSON is YAML, but for floats such as 1e-05)."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], int | float):
        value = value[0]
    if isinstance(value, float):
        text = repr(value)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")
    if isinstance(value, tuple):
        return "[" + ", ".join(_yaml_value(item) for item in value) + "]"
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./@+-]*", value) and not _is_keyword(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _is_keyword(word: str) -> bool:
    return word.lower() in ("true", "false", "null", "yes", "no", "on", "off", "y", "n")


def rebased(settings: Settings, directory: Path) -> Settings:
    """Settings of a file in `directory`, with paths that exist beside it made absolute."""
    return {key: _rebased(key, setting, directory) for key, setting in settings.items()}


def _rebased(key: str, setting: Setting, directory: Path) -> Setting:
    if key not in ("model", "data", "eval", "from_run"):
        return setting
    value = setting.value
    if isinstance(value, list):
        return Setting([_absolute(key, item, directory) for item in value], setting.place)
    return Setting(_absolute(key, value, directory), setting.place)


def _absolute(key: str, value: Any, directory: Path) -> Any:
    """A path made absolute; a Hub repository, a run's name, a share or anything else as it is."""
    if not isinstance(value, str) or not value:
        return value
    if key == "from_run":
        path = directory / Path(value).expanduser()
        return str(path.resolve()) if path.is_dir() else value
    if key == "model":
        path = directory / Path(value).expanduser()
        return value if not path.exists() and is_repository(value) else str(path.resolve())
    if key == "eval" and share_of(value) is not None and not (directory / value).exists():
        return value
    return sources.absolute(value, directory)
