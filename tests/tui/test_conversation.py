"""The conversation behind the screen: what the engine is given of it."""

from __future__ import annotations

from pathlib import Path

from tui_stage import MODEL, Clock, Replay, Stage

from ftllm.chat import store as chats
from ftllm.chat.options import ChatOptions
from tui.conversation import Conversation
from tui.inbox import Inbox


def test_the_first_message_shows_the_images_and_the_engine_sees_them_ever_after(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    with chats.open_store(tmp_path / "chats.db") as store:
        engine = Replay(Inbox(), Clock())
        conversation = Conversation(store, engine, MODEL, ChatOptions(images=(str(tmp_path / "a.png"),)))
        conversation.ask("what")
        conversation.close()
        conversation.ask("and")
        conversation.close()
        first, second = engine.asked
        kept = conversation.nodes[0].message.images
        assert Path(kept[0]).is_relative_to(tmp_path / "images")
        assert [message.get("images") for message in first] == [kept]
        assert [message.get("images") for message in second] == [kept]  # the empty reply left two turns, now one
        edited = conversation.nodes[0]
        conversation.edit(edited, "what?")
        assert engine.asked[2][0]["images"] == kept


async def test_the_names_of_shown_images_stand_above_the_message(tmp_path: Path) -> None:
    (tmp_path / "a cat.png").write_bytes(b"pixels")
    stage = Stage(ChatOptions(images=(str(tmp_path / "a cat.png"),)))
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "What is this?")
        stage.engine.text("A cat.")
        stage.engine.done()
        await stage.settle(pilot)
        drawn = [line.strip() for line in stage.drawn()]
        assert drawn[drawn.index("▌ What is this?") - 1] == "▌ image: a cat.png"
        await stage.say(pilot, "Really?")
        assert sum("image:" in line for line in stage.drawn()) == 1
