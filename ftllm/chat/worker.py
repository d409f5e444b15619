"""The engine's process: commands as JSON lines on stdin, events as JSON lines on what was stdout.

Started by `ftllm.chat.engine`. One thread reads commands, the main thread loads and generates. The process ends when
its stdin does, so that it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ftllm.chat.events import AnyEvent, Failed, Loaded, LoadProgress, to_json
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.speaker import Control, Speaker
from ftllm.errors import UserError
from ftllm.llama import native
from ftllm.llama.model import Model

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
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._controls: dict[int, Control] = {}
        self._speaker: Speaker | None = None
        self._load_error = UserError("no model is loaded")

    def serve(self, commands: BinaryIO) -> None:
        """Do what is asked, in order; `stop` and `answer_now` take effect on what was asked before them."""
        threading.Thread(target=self._read, args=(commands,), name="commands", daemon=True).start()
        with suppress(UserError):  # told when something is to be loaded
            native.api()
        with native.log_to(lambda line: print(line, file=sys.stderr)):
            while True:
                self._do(self._commands.get())

    def _do(self, command: dict[str, Any]) -> None:
        number = command.get("reply", 0)
        try:
            if command["command"] == "load":
                self._load(Path(command["path"]), LoadSettings(**command["settings"]))
            else:
                self._generate(number, command["messages"], ReplyOptions(**command["options"]))
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

    def _read(self, commands: BinaryIO) -> None:
        for line in commands:
            command = json.loads(line)
            match command["command"]:
                case "stop":
                    for number, control in tuple(self._controls.items()):
                        control.stop |= number <= command["reply"]
                case "answer_now":
                    if asked := self._controls.get(command["reply"]):
                        asked.answer_now = True
                case "generate":
                    self._controls[command["reply"]] = Control()
                    self._commands.put(command)
                case _:
                    self._commands.put(command)
        os._exit(0)

    def _load(self, path: Path, settings: LoadSettings) -> None:
        begun = time.monotonic()
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

        model = Model.load(path, gpu_layers=settings.gpu_layers, progress=progress)
        self._speaker = Speaker(model, settings, self._emit)
        now = time.monotonic()
        self._emit(
            Loaded(
                time=now,
                reply=0,
                path=str(path),
                description=model.description,
                n_ctx=self._speaker.context.n_ctx,
                n_ctx_train=model.n_ctx_train,
                size_bytes=model.size_bytes,
                n_params=model.n_params,
                seconds=now - begun,
            )
        )

    def _generate(self, number: int, messages: list[dict[str, str]], options: ReplyOptions) -> None:
        if self._speaker is None:
            raise self._load_error
        self._speaker.reply(number, messages, options, self._controls[number])

    def _emit(self, event: AnyEvent) -> None:
        line = memoryview(to_json(event).encode("ascii") + b"\n")
        while line:
            line = line[self._output.write(line) :]


if __name__ == "__main__":
    main()
