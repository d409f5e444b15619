"""The processes of an export, and the files between them.

The worker converts, merges and quantizes in one pass; the verifier computes in transformers what the result must
predict. A file gets its final name only when the verifier is content, and its entry in `export.json` at once: an export
that is killed goes on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftllm.export.child import VERIFIER, WORKER, Child, Events
from ftllm.export.scratch import remove_stale, scratch
from ftllm.export.targets import Target
from ftllm.files import partial_path
from ftllm.progress import Reporter


@dataclass
class Written:
    """One type's file, or its shards, as written but not published yet."""

    target: Target
    plan: dict[str, Any]
    shards: list[dict[str, Any]]
    largest_error: float
    mean_errors: dict[str, float]
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Work:
    """The processes; leave it, and they end, and what they had not finished goes."""

    def __init__(self, stack: ExitStack, reporter: Reporter) -> None:
        self._stack = stack
        self._reporter = reporter
        self._events = Events()
        self._verifier: Child | None = None
        self._ready = False
        self._unsynced: Child | None = None  # whose files are whole, but maybe not yet on the disk
        self._tokens: dict[Child, int] = {}  # of the text that a child measures on
        self.timings: dict[str, float] = {}

    def start(self, name: str, module: str, job: Mapping[str, Any]) -> Child:
        """Start a process; it is ended, whatever happens."""
        child = Child(name, module, dict(job), self._events)
        self._stack.callback(child.kill)
        self._stack.callback(lambda: self._reporter.detail(child.log()))
        self._stack.callback(self._end)
        return child

    def _end(self) -> None:
        """Tell all processes to end, before any is waited for."""
        for child in self._events.children:
            child.end()

    def start_verifier(self, job: Mapping[str, Any]) -> None:
        """Start the verifying process; it gets a scratch directory where the reference is not `whole`."""
        remove_stale()
        place = None if job["whole"] else str(self._stack.enter_context(scratch()))
        self._verifier = self.start("verifying", VERIFIER, {**job, "scratch": place})

    def plan(self, job: Mapping[str, Any]) -> tuple[Child, dict[str, Any]]:
        """Start a worker and wait for its plan."""
        worker = self.start("converting", WORKER, job)
        with self._reporter.task("Reading the checkpoint", None):
            plan = self.wait_for(worker, "plan")
        self.add_time("load", plan["seconds"])
        return worker, plan

    def write(
        self, worker: Child, plan: dict[str, Any], targets: Sequence[Target], importance: Path | None = None
    ) -> list[Written]:
        """Let the worker write the partial files of `targets`; each is one of the plan's, by its label."""
        planned = {file["label"]: file for file in plan["files"]}
        files = [planned[target.label] for target in targets]
        paths = {}
        for target, file in zip(targets, files, strict=True):
            self._stack.callback(target.discard)
            paths[file["label"]] = [str(path) for path in target.begin(file["shards"])]
        self._stack.callback(self._end)  # before their files are removed
        worker.send({"go": True, "paths": paths, "importance": str(importance) if importance else None})
        total = sum(file["bytes"] for file in files)
        with self._reporter.task("Merging and quantizing", total, "bytes") as task:
            event = self.wait_for(
                worker, "written", progress=lambda now: task.update(now["done"], now["tensor"], tensor=now["tensor"])
            )
            task.update(total)
        self.add_time("write", event["seconds"])
        self._unsynced = worker
        return [
            Written(target, file, made["shards"], made["largest_error"], made["mean_errors"])
            for target, file in zip(targets, files, strict=True)
            for made in event["files"]
            if made["label"] == file["label"]
        ]

    def collect(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Measure an importance matrix in a process of its own; what it says about it."""
        self._stack.callback(partial_path(Path(job["out"])).unlink, missing_ok=True)
        collector = self.start("collecting", "ftllm.export.collector", job)
        self.wait_for(collector, "texts")
        event = self._waiting(collector, "collected", "Measuring the importance of weights")
        self.add_time("imatrix", event["seconds"])
        return event

    def verify(self, files: Sequence[Written], plan: dict[str, Any]) -> Iterator[Written]:
        """Each file, on the disk, with its figures and faults; without a verifier, as it is."""
        if self._verifier is None:
            self._sync()
            yield from files
            return
        merged = {new: plan["merged"][old] for old, new in plan["renamed"].items() if new}
        if not self._ready:
            self._waiting(self._verifier, "ready", "Computing the reference")
        for number, file in enumerate(files, 1):
            self._verifier.send(
                {"files": file.shards, "type": file.plan["type"], "merged": merged, "names": plan["names"]}
            )
            result = self._waiting(
                self._verifier, "verified", f"Verifying {file.plan['label']} ({number} of {len(files)})"
            )
            file.figures, file.faults = result["figures"], result["faults"]
            self.add_time(f"verify {file.plan['label']}", result["seconds"])
            self._reporter.event("verified", type=file.plan["type"], **result["figures"], faults=result["faults"])
            self._sync()
            yield file

    def _sync(self) -> None:
        """Wait until all that was written is on the disk."""
        if self._unsynced is not None:
            with self._reporter.task("Waiting for the disk", None):
                self.wait_for(self._unsynced, "synced")

    def _waiting(self, child: Child, wanted: str, title: str) -> dict[str, Any]:
        """A child's next `wanted` event, with a bar over the tokens it evaluates."""
        with self._reporter.task(title, self._tokens.get(child), "tokens") as task:
            return self.wait_for(child, wanted, checking=lambda event: task.update(event["done"]))

    def wait_for(self, child: Child, wanted: str, **progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """The next `wanted` event of a child.

        Args:
            progress: by an event's name, what is called with each such event until then.
        """
        while True:
            sender, event = self._events.next(child)
            kind = event["event"]
            if kind == "ready":
                self._ready = True
                self.add_time("reference", event["seconds"])
            if kind == "synced":
                self._unsynced = None
                self.add_time("sync", event["seconds"])
            if kind == "texts":
                self._tokens[sender] = event["tokens"]
            if sender is child and kind in progress:
                progress[kind](event)
            if sender is child and kind == wanted:
                return event

    def add_time(self, what: str, seconds: float) -> None:
        self.timings[what] = self.timings.get(what, 0.0) + seconds


def in_background(work: Callable[[], dict[str, str]]) -> Future[dict[str, str]]:
    """Run `work` on a thread that does not keep the program from ending: hashing a large base takes minutes."""
    future: Future[dict[str, str]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="hash", daemon=True).start()
    return future
