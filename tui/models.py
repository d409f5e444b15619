"""Whom one can talk to: the models of this machine, and those of endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ftllm.catalogue import choose, everything, projector_beside
from ftllm.chat.options import LoadSettings
from ftllm.chat.remote import Remote, Target, is_address, parse_remote
from ftllm.errors import UserError
from ftllm.values import dataclass


@dataclass(frozen=True)
class Entry:
    """One of them; what is not known is empty.

    Attributes:
        target: what to load.
        name: as a person would type it.
        place: `run`, `file`, `cache`, or the endpoint's host.
        type: of the quantization.
        size: in bytes.
        context: tokens it was trained for, or the endpoint holds.
        fits: whether it runs in the memory that is free now.
        problem: why it cannot be taken.
    """

    target: Target
    name: str
    place: str
    type: str = ""
    size: int = 0
    context: int = 0
    fits: bool = True
    problem: str = ""


def local_entries(runs: Path) -> list[Entry]:
    """The models of runs, the newest run's first, then files lying here, then the Hub's cache."""
    entries = [
        Entry(
            model.path.absolute(),
            model.name,
            model.origin.partition(" ")[0],
            model.type,
            model.size,
            model.context,
            model.fits,
            model.problem.removeprefix(f"{model.path} is "),
        )
        for model in everything(runs)
    ]
    of_runs = [entry for entry in entries if entry.place == "run"]
    return [*reversed(of_runs), *(entry for entry in entries if entry not in of_runs)]


def addresses_of(listed: Iterable[str], models: Iterable[str]) -> list[Remote]:
    """Endpoints to ask: those of the settings file, then those that sessions were held with, each once."""
    found: dict[str, Remote] = {}
    for address in (*listed, *filter(is_address, models)):
        try:
            remote = parse_remote(address)
        except UserError:
            continue
        found.setdefault(remote.url, remote)
    return list(found.values())


def remote_entries(remote: Remote) -> list[Entry]:
    """What an endpoint has; one entry with the problem where it does not say."""
    from ftllm.chat.offers import offers

    try:
        return [
            Entry(offer.remote, offer.remote.model, remote.host, context=offer.context) for offer in offers(remote)
        ] or [Entry(Remote(remote.url), remote.host, "endpoint", problem="it has no model")]
    except UserError as error:
        return [Entry(Remote(remote.url), remote.host, "endpoint", problem=error.message)]


def named(text: str, entries: Sequence[Entry], runs: Path) -> Target:
    """The model a person means: one that is listed, by its name or a part that no other has, an address, path or run.

    Raises:
        UserError: there is none, or what is there is not a model.
    """
    sound = [entry for entry in entries if not entry.problem]
    exact = [entry for entry in sound if text in (entry.name, str(entry.target))]
    part = [entry for entry in sound if text.casefold() in entry.name.casefold()]
    if exact or (len(part) == 1 and not Path(text).exists()):
        return (exact or part)[0].target
    if is_address(text):
        return parse_remote(text)
    return choose(text, runs).path.absolute()


def kept_target(model: str) -> Target | None:
    """Whom a session was held with, as the store has it; None where that is not known, or not there any more."""
    if is_address(model):
        with suppress(UserError):
            return parse_remote(model)
    path = Path(model)
    return path.absolute() if model and path.is_file() else None


def load_of(target: Target, before: LoadSettings, *, shows_images: bool) -> LoadSettings:
    """How another model is loaded: as the one before, but for what is of one model only."""
    projector = projector_beside(target) if shows_images and isinstance(target, Path) else None
    return replace(before, adapters=(), mmproj=str(projector or ""))


def same(one: Target, other: Target) -> bool:
    """Whether two targets are the same model, however their paths are written."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return one == other
