"""`ftllm push`: a run's GGUFs, or its adapter, as repositories that people can find, trust and run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftllm import runs
from ftllm.errors import UserError
from ftllm.hub import card, facts, files_table, names, terms
from ftllm.hub.card import Page
from ftllm.hub.facts import Facts
from ftllm.hub.publish import Item, Published, Publisher, Remote, Target, watched
from ftllm.hubfiles import is_offline, told
from ftllm.progress import Reporter

ADAPTER_FILES = ("adapter_model.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
FROM = re.compile(r"^FROM[ \t]+(.+?)[ \t]*$", re.MULTILINE | re.IGNORECASE)
LOCAL = re.compile(r"(?<![\w.:/~-])(?:~?/|[A-Za-z]:\\)[^\s\"']*")
STATIC, IMATRIX = "Static quantizations", "Quantizations with an importance matrix"


@dataclass(frozen=True)
class PushRequest:
    """What the command line asks for.

    Attributes:
        given: run or directory; None is the latest run.
        adapter: publish the PEFT adapter instead of the GGUFs.
        both: two repositories, one for static quantizations and one for those with an importance matrix.
        offline: never touch the network; only with `dry_run`.
    """

    repo: str
    given: str | None = None
    adapter: bool = False
    both: bool = False
    card_extra: Path | None = None
    private: bool = False
    revision: str = "main"
    runs_root: Path = runs.DEFAULT_RUNS
    offline: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Planned:
    """What a dry run shows of one repository: each file's path, size and state, and the card."""

    repo: str
    exists: bool | None
    files: tuple[tuple[str, int, str], ...]
    card: str


def push(request: PushRequest, reporter: Reporter) -> list[Published]:
    """Publish.

    Raises:
        UserError: there is nothing to publish, or the Hub does not allow it.
        WorkError: network or Hub failed; what was sent is kept.
    """
    _require_online(request)
    with watched(reporter):
        publisher = Publisher(reporter, revision=request.revision)
        user = publisher.user()
        pages = plan(request, reporter)
        targets = [target(page) for page in pages]
        _check_hashes(pages, publisher, reporter)
        reporter.detail(f"as {user}")
        try:
            for goal in targets:
                publisher.prepare(goal.repo, private=request.private)
                publisher.check(goal.repo, goal.card(None))
            for goal in targets:
                publisher.send(goal)
            done = [publisher.commit(goal, _message(page)) for goal, page in zip(targets, pages, strict=True)]
        except KeyboardInterrupt:
            reporter.say("stopped; nothing is published yet. The same command goes on: whole files are not sent again")
            raise
    return done


def require_access(request: PushRequest, reporter: Reporter) -> None:
    """Find out before long work whether a push can come after it: the name, the token, and the network.

    Raises:
        UserError: the name is none, there is no token, or it is not allowed to write.
        WorkError: the Hub cannot be reached.
    """
    names.repository(request.repo)
    _require_online(request)
    with watched(reporter):
        Publisher(reporter, revision=request.revision).user()


def rehearse(request: PushRequest, reporter: Reporter) -> list[Planned]:
    """What a push would do, without changing anything on the Hub."""
    pages = plan(request, reporter)
    planned = []
    with watched(reporter):
        publisher = Publisher(reporter, revision=request.revision, waits=())
        for page in pages:
            goal, reached, remote = target(page), False, None
            if not is_offline(request.offline):
                try:
                    with told(goal.repo, "compared"):
                        remote, reached = publisher.look(goal.repo), True
                except UserError as error:
                    reporter.warn(f"not compared with the Hub: {error.message}")
            text = goal.card(remote.card if remote else None)
            items = (*goal.items, Item(card.NAME, text.encode()))
            states = tuple((item.path, item.size, _state(item, remote, reached, publisher)) for item in items)
            planned.append(Planned(goal.repo, remote is not None if reached else None, states, text))
    return planned


def plan(request: PushRequest, reporter: Reporter) -> list[Page]:
    """The cards to write, with what each is about; nothing is sent.

    Raises:
        UserError: there is nothing to publish, or the request contradicts itself.
    """
    from huggingface_hub import constants

    repo = names.repository(request.repo)
    names.branch(request.revision)
    if request.adapter and request.both:
        raise UserError("--adapter and --static-and-i1 exclude each other", "push twice, to different repositories")
    extra_front, extra = card.read_extra(request.card_extra) if request.card_extra else ({}, "")
    find = facts.of_adapter if request.adapter else facts.of_models
    known = find(request.given, request.runs_root)
    if request.given is None:
        reporter.say(f"Publishing {'run ' + known.run.name if known.run else known.place}")
    base_terms = terms.of_base(known.base_path, known.base_repo, offline=request.offline)
    if known.base_repo is None and known.tuned and "base_model" not in extra_front:
        reporter.warn(
            f"the base {known.base_name} is a directory here, so the card names no base model; "
            "`base_model: org/name` in the front matter of --card-extra does"
        )
    if not base_terms.license and "license" not in extra_front:
        reporter.warn(
            f"the license of {known.base_repo or known.base_name or 'the base'} was not found; "
            "`license:` in the front matter of --card-extra names one"
        )
    if isinstance(extra_front.get("base_model"), str) and known.base_repo is None:
        known = replace(known, base_repo=extra_front["base_model"])
    page = Page(
        repo, known, base_terms, constants.ENDPOINT, request.revision, request.adapter, None, extra, extra_front
    )
    return _pair(page) if request.both else [page]


def _require_online(request: PushRequest) -> None:
    if is_offline(request.offline):
        raise UserError("pushing needs the network, and this is offline", "leave --offline and HF_HUB_OFFLINE out")


def _pair(page: Page) -> list[Page]:
    """One card a family, each naming the other."""
    static, weighted = card.split_families(page.facts.quantizations)
    for found, name in ((static, "without"), (weighted, "with")):
        if not found:
            raise UserError(
                f"{page.facts.place} has no quantization {name} an importance matrix",
                "`ftllm export --quant all,i1` makes both; or push without --static-and-i1",
            )
    first, second = names.pair(page.repo)
    matrices = tuple(path for path in page.facts.others if "imatrix" in path.name.lower())
    others = tuple(path for path in page.facts.others if path not in matrices)
    return [
        replace(
            page, repo=first, facts=replace(page.facts, quantizations=static, others=others), sibling=(second, IMATRIX)
        ),
        replace(page, repo=second, facts=replace(page.facts, quantizations=weighted), sibling=(first, STATIC)),
    ]


def target(page: Page) -> Target:
    """The files of a repository, smallest first, without its card."""
    known = page.facts
    paths = [path for item in known.quantizations for path in item.paths]
    others = [path for path in known.others if path.name != facts.MODELFILE]
    items = [Item(path.name, path) for path in (*paths, *others)]
    if recipe := modelfile(known):
        items.append(Item(facts.MODELFILE, recipe))
    if page.adapter:
        items = [Item(path.name, path) for path in _adapter_files(known.place)]
        items.append(Item(facts.ADAPTER[0], public_adapter(known)))
    record = {item.name: item.entry for item in known.quantizations if item.entry}
    if record:
        items.append(Item(facts.RECORD, _json({"files": public(record)})))
    items += [Item(path.name, path) for path in (*page.terms.files, *([known.plot] if known.plot else []))]
    unique = {item.path: item for item in items}
    ordered = sorted(unique.values(), key=lambda item: (item.size, item.path))
    return Target(page.repo, tuple(ordered), lambda before: card.render(page, before))


def modelfile(known: Facts) -> bytes | None:
    """The Modelfile, from a file of its own repository: a pair has one, and it was written for either of them.

    None without one, and where all models are in shards, which Ollama does not read.
    """
    path = next((path for path in known.others if path.name == facts.MODELFILE), None)
    whole = [item for item in known.quantizations if len(item.paths) == 1]
    if path is None or not whole:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    named = FROM.search(text)
    if named and Path(named[1]).name in {item.name for item in whole}:
        start = Path(named[1]).name
    else:
        start = (files_table.recommended(whole) or whole[0]).name
    return FROM.sub(lambda _: f"FROM ./{start}", text, count=1).encode()


def public(value: Any) -> Any:
    """JSON for the world: of paths on this machine only the last part stays."""
    if isinstance(value, dict):
        return {public(key): public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if isinstance(value, str):
        return LOCAL.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], value)
    return value


def public_adapter(known: Facts) -> bytes:
    """adapter_config.json with a base that others can have too: its repository, else its name alone."""
    config = json.loads((known.place / facts.ADAPTER[0]).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = known.base_repo or known.base_name
    if known.base_repo is None:
        config["revision"] = None
    return _json(public(config))


def _adapter_files(place: Path) -> list[Path]:
    found = {path for pattern in ADAPTER_FILES for path in place.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != facts.ADAPTER[0])


def _check_hashes(pages: Sequence[Page], publisher: Publisher, reporter: Reporter) -> None:
    """Refuse files that are not those that the export recorded and verified."""
    for page in pages:
        recorded = facts.recorded_hashes(page.facts)
        paths = [path for item in page.facts.quantizations for path in item.paths]
        with reporter.task("Hashing", sum(path.stat().st_size for path in paths), "bytes") as task:
            for path in paths:
                digest = publisher.sha256(Item(path.name, path))
                if recorded.get(path.name, digest) != digest:
                    raise UserError(f"{path} has changed since it was exported and verified", "export it again")
                task.advance(path.stat().st_size, path.name)


def _state(item: Item, remote: Remote | None, reached: bool, publisher: Publisher) -> str:
    if not reached:
        return ""
    if remote is None or item.path not in remote.files:
        return "new"
    return "changed" if publisher.differs(item, remote) else "unchanged"


def _message(page: Page) -> str:
    what = "the adapter" if page.adapter else ", ".join(item.type for item in page.facts.quantizations)
    return f"Publish {what} with ftllm"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
