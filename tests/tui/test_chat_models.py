"""Another model in the middle of a conversation: picked, named, loading, failing."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList
from tiny_vision import write_png, write_projector
from tui_stage import MODEL, Stage, converse, notes, status

from ftllm.chat import store as chats
from ftllm.chat.defaults import Defaults
from ftllm.chat.options import ChatOptions, LoadSettings
from ftllm.chat.remote import Remote
from tui.models import addresses_of
from tui.screens.models import ModelsScreen
from tui.widgets.completions import Completions

sys.path.append(str(Path(__file__).parents[1] / "llama"))

from tiny_gemma import write_gemma


@pytest.fixture
def models(tmp_path: Path, scripted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with two models, one damaged, and no Hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for name in ("small-F32.gguf", "large-F32.gguf"):
        shutil.copy(scripted, tmp_path / name)
    (tmp_path / "broken-Q8_0.gguf").write_bytes(scripted.read_bytes()[:2000])
    return tmp_path


@pytest.fixture
def endpoint() -> Iterator[Remote]:
    class Listing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": "qwen", "max_model_len": 40960}]}).encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Remote(f"http://127.0.0.1:{server.server_port}/v1")
    server.shutdown()


def listed(stage: Stage) -> list[str]:
    """The lines of the picker, without the space between their cells."""
    table = stage.app.screen.query_one(OptionList)
    return [" ".join(str(table.get_option_at_index(n).prompt).split()) for n in range(table.option_count)]


async def test_picking_one(models: Path, endpoint: Remote) -> None:
    options = ChatOptions(
        load=LoadSettings(n_ctx=512, adapters=(("a.gguf", 1.0),)), defaults=Defaults(endpoints=(endpoint.url,))
    )
    stage = Stage(options)
    async with stage.app.run_test(size=(100, 30)) as pilot:
        stage.engine.ready()
        await converse(stage, pilot)
        await pilot.press("f3")
        assert isinstance(stage.app.screen, ModelsScreen)
        await stage.until(pilot, lambda: len(listed(stage)) == 4)
        size = f"{(models / 'small-F32.gguf').stat().st_size / 1e6:.1f} MB"
        assert listed(stage) == [
            "broken-Q8_0.gguf cut short: its header does not end within its 2,000 bytes",
            f"large-F32.gguf file F32 {size} 8,192 yes",
            f"small-F32.gguf file F32 {size} 8,192 yes",
            f"qwen {endpoint.host} 40,960",
        ]
        await pilot.press("s", "m")
        assert [line.split()[0] for line in listed(stage)] == ["small-F32.gguf"]
        field = stage.app.screen.query_one(Input)
        field.value = "large"
        await pilot.pause()
        field.value = "small"  # and Enter before the table has changed
        stage.app.screen.action_take()
        await pilot.pause()
        assert stage.engine.loads == [(models / "small-F32.gguf", LoadSettings(n_ctx=512))]
        stage.engine.load_progress(0.5)
        await stage.settle(pilot)
        assert "loading 50%" in status(stage)
        assert "small-F32" in status(stage)
        await stage.say(pilot, "And now?")
        assert len(stage.engine.asked) == 1
        stage.engine.ready()
        await stage.settle(pilot)
        assert len(stage.engine.asked) == 2
        stage.engine.text("Yes.")
        await stage.settle(pilot)
        assert stage.row("Yes.") == stage.row("small-F32") + 1
        stage.engine.done()
        await stage.settle(pilot)
        nodes = stage.screen.conversation.nodes
        assert [node.author.model for node in nodes[1::2]] == [str(MODEL), str(models / "small-F32.gguf")]
        assert chats.list_sessions(stage.store)[0].model == str(models / "small-F32.gguf")
        stage.screen.open_session(nodes[0].session)
        assert [line for line in stage.drawn() if "F32" in line] == ["small-F32.gguf"]
        await pilot.press("f3")
        assert listed(stage)[2].startswith("● small-F32.gguf")


async def test_where_images_were_shown_another_model_gets_its_projector(tmp_path: Path) -> None:
    write_png(tmp_path / "red.png", (255, 0, 0))
    write_gemma(tmp_path / "tiny-F32.gguf")
    projector = write_projector(tmp_path / "mmproj-tiny-F32.gguf")
    stage = Stage(ChatOptions(load=LoadSettings(n_ctx=512, mmproj="other.gguf"), images=(str(tmp_path / "red.png"),)))
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await converse(stage, pilot)
        stage.screen.switch(tmp_path / "tiny-F32.gguf")
        assert stage.engine.loads[-1][1] == LoadSettings(n_ctx=512, mmproj=str(projector))
        stage.engine.ready()
        await stage.settle(pilot)
        await pilot.press("f6")  # nothing was shown in this one
        stage.screen.switch(MODEL)
        assert stage.engine.loads[-1][1] == LoadSettings(n_ctx=512)


@pytest.mark.usefixtures("models")
async def test_a_model_that_cannot_be_loaded_leaves_the_one_before() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await converse(stage, pilot)
        await stage.say(pilot, "/model large-F32.gguf")
        await stage.until(pilot, lambda: len(stage.engine.loads) == 1)
        await stage.say(pilot, "Hello?")
        stage.engine.fail_to_load()
        await stage.settle(pilot)
        assert notes(stage)[0].startswith("nano.gguf is cut short")
        assert notes(stage)[1] == f"Going back to {MODEL.stem}."
        assert stage.engine.loads[-1][0] == MODEL
        stage.engine.ready()
        await stage.settle(pilot)
        await pilot.press("enter")
        assert stage.engine.asked[-1][-1]["content"] == "Hello?"
        assert chats.list_sessions(stage.store)[0].model == str(MODEL)


@pytest.mark.usefixtures("models")
async def test_names_are_completed_and_what_is_wrong_is_told() -> None:
    stage = Stage()
    async with stage.app.run_test(size=(100, 30)) as pilot:
        stage.engine.ready()
        await pilot.press(*"/model ")
        menu = stage.screen.query_one(Completions)
        await stage.until(pilot, lambda: menu.display)
        assert [line.strip() for line in str(menu.visual).splitlines()] == ["large-F32.gguf", "small-F32.gguf"]
        await stage.say(pilot, "/model broken-Q8_0.gguf")
        await stage.until(pilot, lambda: len(stage.app._notifications) == 1)
        assert "broken-Q8_0.gguf is cut short" in next(iter(stage.app._notifications)).message
        await stage.say(pilot, "Count.")
        stage.engine.text("one")
        await stage.settle(pilot)
        await stage.say(pilot, "/model small")
        await stage.until(pilot, lambda: len(stage.app._notifications) == 2)
        assert stage.engine.loads == []


@pytest.mark.usefixtures("models")
async def test_an_address_is_typed() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await pilot.press("f3", *"http://box/v1")
        await stage.until(pilot, lambda: listed(stage) == ["http://box/v1 endpoint"])
        await pilot.press("enter")
        assert stage.engine.loads[0][0] == Remote("http://box/v1")


def test_endpoints_that_are_asked() -> None:
    listed = ["http://a:1/v1/", "not an address"]
    sessions = ["/models/x.gguf", "http://a:1/v1 qwen", "https://b/v1 other"]
    assert [remote.url for remote in addresses_of(listed, sessions)] == ["http://a:1/v1", "https://b/v1"]
