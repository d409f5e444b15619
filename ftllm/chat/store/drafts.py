"""What was being written when there was no session to keep it with: for the next conversation that begins."""

from __future__ import annotations

from ftllm.chat.store.database import Store


def keep_draft(store: Store, text: str) -> None:
    """Keep a draft until `take_draft` asks for it."""
    with store.writing() as db:
        db.execute("INSERT INTO drafts(text) VALUES(?)", (text,))


def take_draft(store: Store) -> str:
    """The draft kept last, which is not kept any longer; empty where there is none."""
    with store.writing() as db:
        row = db.execute("SELECT id, text FROM drafts ORDER BY id DESC LIMIT 1").fetchone()
        if row is None:
            return ""
        db.execute("DELETE FROM drafts WHERE id = ?", (row[0],))
        return str(row[1])
