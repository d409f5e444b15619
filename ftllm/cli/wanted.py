"""Whom `ftllm chat` is to talk to, and whether what was given goes with them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftllm.chat.options import ChatOptions, LoadSettings
from ftllm.errors import UserError
from ftllm.values import dataclass

if TYPE_CHECKING:
    from ftllm.chat.remote import Target

# What has no meaning for a model behind an endpoint.
ONLY_HERE = {
    "lora": ("--lora", "an endpoint serves its adapters by their names: --model NAME"),
    "ctx": ("--ctx", "an endpoint's context is set where it is started"),
    "gpu_layers": ("--gpu-layers", "an endpoint places its own layers"),
    "mmproj": ("--mmproj", "an endpoint loads its own, where it is started"),
}


@dataclass(frozen=True)
class Wanted:
    """Whom to talk to.

    Attributes:
        given: the parameters that stood on the command line.
        seen: images were shown earlier in the session.
    """

    model: str | None
    name: str
    runs: Path
    mmproj: Path | None
    given: Set[str]
    seen: bool = False

    @property
    def remote(self) -> bool:
        """Whether it is a model behind an endpoint."""
        from ftllm.chat.remote import is_address

        return self.model is not None and is_address(self.model)

    def find(self, options: ChatOptions) -> tuple[Target, str, ChatOptions]:
        """What to talk to, in words where it came from, and the options with the mmproj that images need.

        Raises:
            UserError: there is no such thing, or what was given does not go with it.
        """
        from ftllm.catalogue import choose
        from ftllm.chat.remote import parse_remote

        if self.remote:
            for parameter, (option, why) in ONLY_HERE.items():
                if parameter in self.given:
                    raise UserError(f"{option} goes with a model on this machine", why)
            return parse_remote(str(self.model), self.name), "", options
        if self.name:
            raise UserError(
                "--model names one of an endpoint's models", "give the endpoint's address, http://host:8000/v1"
            )
        choice = choose(self.model, self.runs)
        if options.images or self.seen or self.mmproj:
            options = replace(options, load=replace(options.load, mmproj=self._projector(choice.path, options.load)))
        return choice.path, choice.origin, options

    def _projector(self, model: Path, before: LoadSettings) -> str:
        """The mmproj for a model: the one given, the session's, or one that fits beside it."""
        from ftllm.llama.vision import find_projector

        kept = Path(before.mmproj) if before.mmproj else None
        path = self.mmproj or (kept if kept and kept.is_file() else find_projector(model))
        if path is None:
            raise UserError(f"there is no mmproj that fits beside {model}", "give the model's own with --mmproj")
        return str(path.expanduser().resolve())
