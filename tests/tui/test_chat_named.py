"""`ftllm chat --session NAME` on the screen: what was said before is there, and it goes on."""

from __future__ import annotations

from tui_stage import Stage, converse

from ftllm.chat import store as chats
from ftllm.chat.options import ChatOptions
from ftllm.chat.session import ChatMessage


async def test_a_named_session_goes_on() -> None:
    stage = Stage(ChatOptions(session="sums"))
    store = stage.store
    old = chats.create_session(store, title="Sums")
    asked = chats.add_user(store, old.id, "before", after=None)
    chats.add_message(store, old.id, ChatMessage("assistant", "an answer"), after=asked.id)
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await converse(stage, pilot, "and now")
        assert [node.message.content for node in chats.shown(store, old.id)][:3] == ["before", "an answer", "and now"]
    assert [message["content"] for message in stage.engine.asked[0]] == ["before", "an answer", "and now"]
