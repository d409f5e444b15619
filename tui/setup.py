"""What a conversation on the screen is begun with."""

from __future__ import annotations

import time
from collections.abc import Callable

from ftllm.chat.options import ChatOptions
from ftllm.chat.remote import Target
from ftllm.chat.store import Store
from ftllm.values import dataclass
from tui.inbox import Inbox
from tui.talker import Talker


@dataclass(frozen=True)
class Setup:
    """Whom one talks to, and what surrounds that.

    Attributes:
        talker: the engine, already told to load the model.
        inbox: where the engine leaves its events.
        store: where conversations are kept.
        model: the model.
        options: how it was loaded and how replies are made.
        clock: seconds, for what is timed on the screen.
        notice: what the person is to be told at the start.
    """

    talker: Talker
    inbox: Inbox
    store: Store
    model: Target
    options: ChatOptions
    clock: Callable[[], float] = time.monotonic
    notice: str = ""
