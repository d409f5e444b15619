"""What was being written when there was no session to keep it with: for the next conversation that begins."""

from __future__ import annotations

import os

from ftllm.chat.store.database import Store


def keep_draft(store: Store, text: str, *, writing: bool = False) -> None:
    """Keep a draft until `take_draft` asks for it, instead of what this process kept while it was writing.

    Args:
        text: nothing is kept of one that is empty.
        writing: it is still being written: nobody else gets it while this process runs.
    """
    with store.writing() as db:
        db.execute("DELETE FROM drafts WHERE writer = ?", (os.getpid(),))
        if text.strip():
            db.execute("INSERT INTO drafts(text, writer) VALUES(?, ?)", (text, os.getpid() if writing else 0))


def take_draft(store: Store) -> str:
    """The draft kept last, which is not kept any longer; empty where there is none."""
    with store.writing() as db:
        for number, text, writer in db.execute("SELECT id, text, writer FROM drafts ORDER BY id DESC").fetchall():
            if not (writer and _runs(writer)):
                db.execute("DELETE FROM drafts WHERE id = ?", (number,))
                return str(text)
    return ""


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
