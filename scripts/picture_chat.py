"""The README's picture of the chat: the real application over a real model, as SVG.

.venv/bin/python scripts/picture_chat.py runs/demo/gguf/nano-demo-Q4_K_M.gguf --out tui/chat.svg

The first prompts are asked one after the other; after the last one its thoughts are opened.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from pathlib import Path

from textual.pilot import Pilot

from ftllm.chat.engine import Engine
from ftllm.chat.options import ChatOptions, ReplyOptions
from ftllm.chat.store import memory_store
from ftllm.files import write_text
from tui.app import ChatApp
from tui.inbox import Inbox
from tui.screens.chat import ChatScreen
from tui.setup import Setup
from tui.widgets.composer import Composer

PROMPTS = ("Hello! Who are you?", "What is 347 + 586?")
PATIENCE = 120.0


async def play(pilot: Pilot[None], prompts: list[str]) -> None:
    """Hold the conversation, as a person would."""
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    await pilot.pause(1.0)  # keys pressed before the composer has the focus are lost
    screen.query_one(Composer).cursor_blink = False
    for number, prompt in enumerate(prompts, start=1):
        screen.query_one(Composer).load_text(prompt)
        await pilot.press("enter")
        deadline = time.monotonic() + PATIENCE
        while screen.busy or len(screen.conversation.messages) < 2 * number:
            if time.monotonic() > deadline:
                raise SystemExit(f"no reply to {prompt!r} in {PATIENCE:.0f} s")
            await asyncio.sleep(0.05)
    await pilot.pause(0.3)
    await pilot.press("tab", "enter", "escape")
    await pilot.pause(0.3)


def picture(model: Path, prompts: list[str], size: tuple[int, int]) -> str:
    """The conversation's SVG; no font is fetched from elsewhere when it is shown."""
    inbox = Inbox()
    drawn: list[str] = []

    async def pose(pilot: Pilot[None]) -> None:
        await play(pilot, prompts)
        drawn.append(pilot.app.export_screenshot(title="ftllm chat"))
        pilot.app.exit()

    with Engine(inbox.put) as engine, memory_store() as store:
        options = ChatOptions(reply=ReplyOptions(temperature=0.0))
        engine.load(model, options.load)
        ChatApp(Setup(engine, inbox, store, model, options)).run(headless=True, size=size, auto_pilot=pose)
    if not drawn:
        raise SystemExit("no picture was taken")
    return re.sub(r"@font-face\s*\{[^}]*\}\s*", "", drawn[0])


def main() -> int:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF")
    parser.add_argument("prompts", nargs="*", default=list(PROMPTS), help="what is asked")
    parser.add_argument("--out", type=Path, default=Path("tui/chat.svg"))
    parser.add_argument("--size", default="96x30", help="columns and rows")
    arguments = parser.parse_args()
    columns, rows = map(int, arguments.size.split("x"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, picture(arguments.model, arguments.prompts, (columns, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
