"""The engine's process: commands as JSON lines on stdin, events as JSON lines on what was stdout.

Started by `ftllm.chat.engine`. One thread reads commands, the main thread loads and generates. The process ends when
its stdin does, so that it never outlives its parent.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ftllm.chat.events import (
    AnswerNow,
    AnyCommand,
    AnyEvent,
    Failed,
    Generate,
    Load,
    Loaded,
    LoadProgress,
    LoadState,
    SaveState,
    SetSampling,
    StateLoaded,
    StateSaved,
    Stop,
    command_from_json,
    to_json,
)
from ftllm.chat.options import LoadSettings
from ftllm.chat.speaker import Control, Speaker
from ftllm.errors import UserError, WorkError
from ftllm.llama import native
from ftllm.llama.adapters import fingerprint_with
from ftllm.llama.machine import available_cpus
from ftllm.llama.model import Model, fewer_and_fewer
from ftllm.llama.placement import devices, in_words

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
PROGRESS = 0.1  # seconds between two reports of loading


def main() -> None:
    """Serve until stdin ends."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # the parent made 2 the log; what native code prints must not end up between our lines
    die_with_parent()
    Worker(output).serve(sys.stdin.buffer)


def die_with_parent() -> None:
    """On Linux, be killed when the parent dies, even in the middle of native code that holds Python's lock."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Worker:
    """The queue between the two threads, and the loaded model.

    Args:
        output: gets one JSON line an event.
    """

    def __init__(self, output: BinaryIO | Any) -> None:
        self._output = output
        self._commands: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
        self._controls: dict[int, Control] = {}
        self._background = Control()  # of what is done while nobody asks for anything
        self._speaker: Speaker | None = None
        self._fingerprint = ""
        self._load_error = UserError("no model is loaded")

    def serve(self, commands: BinaryIO) -> None:
        """Do what is asked, in order; `Stop` and the like take effect on what was asked before them."""
        threading.Thread(target=self._read, args=(commands,), name="commands", daemon=True).start()
        with suppress(UserError):  # told when something is to be loaded
            native.api()
        with native.log_to(lambda line: print(line, file=sys.stderr)):
            while True:
                self._do(self._commands.get())
                self._background = Control()
                if self._commands.empty() and self._speaker is not None:
                    self._prepare(self._speaker)

    def _do(self, command: AnyCommand) -> None:
        number = command.reply if isinstance(command, Generate) else 0
        try:
            match command:
                case Load():
                    self._load(command)
                case Generate():
                    self._generate(command)
                case SaveState():
                    self._save_state(Path(command.path))
                case LoadState():
                    self._load_state(Path(command.path))
        except UserError as error:
            if not number:
                self._load_error = error
            self._emit(Failed(time.monotonic(), number, error.message, error.hint, error.exit_code))
        except Exception as error:
            traceback.print_exc()  # into the log
            reason = f"{type(error).__name__}: {error}"
            self._emit(Failed(time.monotonic(), number, f"the engine failed: {reason}", "this is a bug in ftllm"))
        finally:
            self._controls.pop(number, None)

    def _prepare(self, speaker: Speaker) -> None:
        """Use the time until the next command; what fails now will fail, and be told, when it is asked for."""
        try:
            speaker.prepare(self._background)
        except Exception:
            traceback.print_exc()
            speaker.memory.forget()

    def _read(self, commands: BinaryIO) -> None:
        for line in commands:
            command = command_from_json(line.decode("utf-8"))
            match command:
                case Stop():
                    for number, control in tuple(self._controls.items()):
                        control.stop |= number <= command.reply
                case AnswerNow():
                    if asked := self._controls.get(command.reply):
                        asked.answer_now = True
                case SetSampling():
                    if asked := self._controls.get(command.reply):
                        asked.sampling.append(command.sampling)
                case Generate():
                    self._controls[command.reply] = Control()
                    self._commands.put(command)
                case _:
                    self._commands.put(command)
            self._background.stop = True
        os._exit(0)

    def _load(self, command: Load) -> None:
        begun = time.monotonic()
        path, settings = Path(command.path), command.settings
        if self._speaker is not None:
            self._speaker.model.close()
            self._speaker = None
        told = begun

        def progress(fraction: float) -> bool:
            nonlocal told
            now = time.monotonic()
            if now - told >= PROGRESS:
                told = now
                self._emit(LoadProgress(now, 0, fraction))
            return True

        found = devices()
        speaker = self._speaker = self._load_to_fit(path, settings, progress)
        model = speaker.model
        self._fingerprint = fingerprint_with(model.header, settings.adapter_paths)
        now = time.monotonic()
        self._emit(
            Loaded(
                time=now,
                reply=0,
                path=str(path),
                description=model.description,
                n_ctx=speaker.context.n_ctx,
                n_ctx_train=model.n_ctx_train,
                size_bytes=model.size_bytes,
                n_params=model.n_params,
                seconds=now - begun,
                fingerprint=self._fingerprint,
                gpu_layers=model.gpu_layers,
                placement=in_words(model.n_layer, model.gpu_layers, found, speaker.context.n_threads),
                shares_cores=model.gpu_layers <= model.n_layer and speaker.context.n_threads >= available_cpus(),
            )
        )

    def _load_to_fit(self, path: Path, settings: LoadSettings, progress: Callable[[float], bool]) -> Speaker:
        """The model and its context; with fewer layers on the GPU where the context does not fit beside them."""
        layers = settings.gpu_layers
        while True:
            model = Model.load(
                path,
                gpu_layers=layers,
                n_ctx=settings.n_ctx,
                adapters=settings.adapter_paths,
                progress=progress,
            )
            try:
                if settings.mmproj:
                    model.add_projector(Path(settings.mmproj))
                return Speaker(model, settings, self._emit)
            except UserError as error:
                model.close()
                if not isinstance(error, WorkError) or settings.gpu_layers != "auto" or model.gpu_layers <= 0:
                    raise
                layers = fewer_and_fewer(model.gpu_layers)[1]

    def _generate(self, command: Generate) -> None:
        if self._speaker is None:
            raise self._load_error
        self._speaker.reply(command.reply, command.messages, command.options, self._controls[command.reply])

    def _save_state(self, path: Path) -> None:
        """Write the cache to a file; that it cannot be kept is no failure of the engine."""
        size = tokens = 0
        error = "no model is loaded"
        if self._speaker is not None:
            try:
                size, error = self._speaker.save_state(path, self._fingerprint), ""
                tokens = len(self._speaker.memory)
            except (UserError, OSError) as failure:
                error = str(failure)
        self._emit(StateSaved(time.monotonic(), 0, str(path), tokens, size, error))

    def _load_state(self, path: Path) -> None:
        speaker, tokens, reason = self._speaker, 0, "no model is loaded"
        if speaker is not None:
            reason = speaker.load_state(path, self._fingerprint)
            tokens = 0 if reason else len(speaker.memory)
        self._emit(StateLoaded(time.monotonic(), 0, str(path), tokens, reason))

    def _emit(self, event: AnyEvent) -> None:
        line = memoryview(to_json(event).encode("ascii") + b"\n")
        while line:
            line = line[self._output.write(line) :]


if __name__ == "__main__":
    main()
