"""What a person can choose about a conversation; `None` leaves the choice to the model file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftllm.errors import UserError
from ftllm.runs import DEFAULT_RUNS
from ftllm.values import dataclass

if TYPE_CHECKING:
    from ftllm.chat.defaults import Defaults

ThinkMode = Literal["auto", "on", "off"]
LoopMode = Literal["warn", "stop", "off"]
Overflow = Literal["drop", "stop"]
PARALLEL = 16  # questions of a batch answered together
ThoughtMode = Literal["auto", "open", "closed", "hidden"]
"""`auto`: open while it lasts; `open`: and afterwards; `closed`: neither; `hidden`: only the clock, while it lasts."""


@dataclass(frozen=True)
class LoadSettings:
    """How a model is loaded.

    Args:
        n_ctx: tokens the context holds; 0 for 8192 to 32768, as the model and the memory allow.
        gpu_layers: layers on the GPU; `auto` for all that fit.
        n_threads: CPU threads; None for one a physical core.
        adapters: LoRA GGUFs and their scales.
        mmproj: the GGUF that lets the model see images; empty without images.
    """

    n_ctx: int = 0
    gpu_layers: int | Literal["auto"] = "auto"
    n_threads: int | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    mmproj: str = ""

    def __post_init__(self) -> None:
        """Make tuples of what JSON has made lists."""
        object.__setattr__(self, "adapters", tuple((path, scale) for path, scale in self.adapters))

    @property
    def adapter_paths(self) -> list[tuple[Path, float]]:
        """The adapters as files."""
        return [(Path(path), scale) for path, scale in self.adapters]


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn, by the names of `ftllm.llama.sampling.Sampling`.

    None leaves a setting as it is: when a reply begins, what the GGUF's `general.sampling.*` say, else `Sampling`'s
    defaults.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


@dataclass(frozen=True)
class ReplyOptions(SamplingOptions):
    """How one reply is made, its sampling included.

    Args:
        max_tokens: tokens generated at most, thoughts included.
        think: `auto` lets the model choose; `on` and `off` use the template's switch where it has one, else open the
            reply with the opening tag or with an empty, closed thought.
        think_budget: tokens a thought may take before the engine closes it and asks for the answer; None: no limit.
        loops: what to do when the model repeats itself: `warn` only tells; `stop` closes a thought, and ends an answer;
            `off` does not look.
        overflow: when the conversation outgrows the context: `drop` the oldest turns, keeping the system prompt, or
            `stop`.
        template_kwargs: variables for the chat template, `reasoning_effort` for one; JSON values by name.
        speculate: draft what was said before, and evaluate it several tokens at once; see `ftllm.chat.lookup`.
        ignore_end: generate `max_tokens` tokens whatever comes, for measuring.
        seed: of the sampler; None for a new one each time.
        delta_seconds: between two deltas of a text, at least.
    """

    max_tokens: int = 8192
    think: ThinkMode = "auto"
    think_budget: int | None = None
    loops: LoopMode = "warn"
    overflow: Overflow = "drop"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    speculate: bool = False
    ignore_end: bool = False
    seed: int | None = None
    delta_seconds: float = field(default=0.02, compare=False)  # how it is told, not how it is made


@dataclass(frozen=True)
class ChatOptions:
    """Everything the screen needs to start a conversation, besides the model's path."""

    load: LoadSettings = field(default_factory=LoadSettings)
    reply: ReplyOptions = field(default_factory=ReplyOptions)
    system: str | None = None
    show_thoughts: bool = True
    images: tuple[str, ...] = ()  # files shown with the first message
    runs: Path = DEFAULT_RUNS  # where runs are, for other models to talk to
    defaults: Defaults | None = None  # the settings file, which the screen offers and changes
    session: str | None = None  # title, number or uid of the session to go on with, or the title of a new one


def template_kwargs_of(given: Sequence[str]) -> dict[str, Any]:
    """What each `--template-kwarg KEY=VALUE` says; a value is JSON where it can be, else text.

    Raises:
        UserError: no `=`, or a name that the template gets from ftllm.
    """
    found: dict[str, Any] = {}
    for argument in given:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--template-kwarg {argument}: not KEY=VALUE", "as in reasoning_effort=high")
        if name in ("messages", "bos_token", "eos_token", "add_generation_prompt", "template"):
            raise UserError(f"--template-kwarg {argument}: {name} is not yours to set", "the conversation decides it")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def gpu_layers_of(given: str) -> int | Literal["auto"]:
    """What `--gpu-layers` says.

    Raises:
        UserError: neither a number nor `auto`.
    """
    if given == "auto":
        return "auto"
    if given.isdecimal():
        return int(given)
    raise UserError(f"--gpu-layers {given}: not a number", "give a number of layers, or auto")


def adapters_of(given: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """What each `--lora FILE.gguf[=SCALE]` says: absolute paths, and their scales.

    Raises:
        UserError: the scale is not a number.
    """
    adapters = []
    for text in given:
        path, scale = text, 1.0
        if not Path(text).exists() and "=" in text:
            path, _, number = text.rpartition("=")
            try:
                scale = float(number)
            except ValueError:
                raise UserError(
                    f"--lora {text}: {number!r} is no scale", "give a number; 1 is the adapter as it is"
                ) from None
        adapters.append((str(Path(path).expanduser().resolve()), scale))
    return tuple(adapters)


def system_of(given: str | None) -> str | None:
    """What `--system` says: the prompt, read from its file for `@FILE`.

    Raises:
        UserError: the file cannot be read.
    """
    if given is None or not given.startswith("@"):
        return given
    path = Path(given[1:])
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise UserError(f"the system prompt {path} cannot be read: {error}", "give a UTF-8 text file") from None
