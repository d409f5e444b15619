"""`ftllm chat --image` with a tiny vision model: what is seen matters, and what is wrongly given is one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_command import ROOT, chat

sys.path.insert(0, str(ROOT / "tests" / "llama"))

from tiny_gemma import write_gemma
from tiny_vision import POSITIONS, write_png, write_projector

from ftllm.chat import store as chats
from ftllm.chat.memory import Memory
from ftllm.chat.options import ReplyOptions
from ftllm.chat.prompt import build_prompt
from ftllm.chat.session import context_of
from ftllm.chat.wire import request_body
from ftllm.llama.context import Context
from ftllm.llama.model import Model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision model, its projector beside it, and two images."""
    place = tmp_path_factory.mktemp("vision")
    write_gemma(place / "tiny-F32.gguf")
    write_projector(place / "mmproj-tiny-F32.gguf")
    write_png(place / "red.png", (255, 0, 0))
    write_png(place / "blue.png", (0, 0, 255))
    return place


def test_an_image_takes_its_positions_and_changes_the_answer(place: Path) -> None:
    def ask(*images: str) -> dict[str, object]:
        shown = [part for image in images for part in ("--image", place / image)]
        options = ("-p", "what is this", "--temp", "0", "--max-tokens", "12", "--ctx", "256", "--json")
        done = chat(place / "tiny-F32.gguf", *options, *shown)
        assert done.returncode == 0, done.stderr
        value: dict[str, object] = json.loads(done.stdout)
        return value

    red, again, blue = ask("red.png"), ask("red.png"), ask("blue.png")
    assert red["answer"] == again["answer"] != blue["answer"]
    alone, both = ask(), ask("red.png", "blue.png")
    lengths = [value["prompt_tokens"] for value in (alone, red, both)]
    assert lengths[1] - lengths[0] == lengths[2] - lengths[1] > POSITIONS  # type: ignore[operator]


def test_the_cache_is_shared_exactly_where_the_image_is_the_same(place: Path) -> None:
    def prompt(model: Model, image: str, *turns: str, images: Mapping[int, str] | None = None) -> tuple[int, ...]:
        images = {0: image, **(images or {})}
        messages = [
            {"role": "assistant" if n % 2 else "user", "content": turn}
            | ({"images": [str(place / images[n])]} if n in images else {})
            for n, turn in enumerate(turns)
        ]
        return build_prompt(messages, model).ids

    def logits(memory: Memory, ids: tuple[int, ...]) -> tuple[int, list[float]]:
        kept = memory.rewind(ids)
        assert memory.evaluate(ids, stop=lambda: False)
        return kept, memory.context.logits()[:50].tolist()

    with Model.load(place / "tiny-F32.gguf") as model:
        model.add_projector(place / "mmproj-tiny-F32.gguf")
        with (
            Context(model, n_ctx=256, flash_attention=False) as context,
            Context(model, n_ctx=256, flash_attention=False) as fresh,
        ):
            memory = Memory(context)
            first = prompt(model, "red.png", "what")
            second = prompt(model, "red.png", "what", "red", "really")
            other = prompt(model, "blue.png", "what")
            image = [place for place, number in enumerate(first) if number < 0]
            assert len(image) == POSITIONS
            assert logits(memory, first)[0] == 0
            kept, shared = logits(memory, second)
            assert kept > image[-1]
            assert shared == pytest.approx(logits(Memory(fresh), second)[1], abs=1e-3)
            more = prompt(model, "red.png", "what", "red", "really", images={2: "blue.png"})
            assert more[: image[-1] + 1] == first[: image[-1] + 1]  # a further image changes nothing before it
            kept, new = logits(memory, other)
            assert kept <= image[0]
            assert new == pytest.approx(logits(Memory(fresh), other)[1], abs=1e-3)
            assert max(abs(a - b) for a, b in zip(new, logits(memory, first)[1], strict=True)) > 0.1


def test_a_session_remembers_its_images(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def say(*arguments: str | Path) -> dict[str, Any]:
        options = ("--temp", "0", "--max-tokens", "5", "--ctx", "512", "--json")
        done = chat(place / "tiny-F32.gguf", *options, *arguments)
        assert done.returncode == 0, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    shown = tmp_path / "shown.png"
    shown.write_bytes((place / "red.png").read_bytes())
    first = say("-p", "what", "--image", shown, "--session", "seen")
    shown.unlink()
    second = say("-p", "and", "--session", "seen")
    third = say("-p", "and", "--image", place / "blue.png", "--session", "seen")
    with chats.open_store(tmp_path / "home" / "ftllm" / "chats.db") as store:
        nodes = chats.shown(store, 1)
        images = [[Path(path).name for path in node.message.images] for node in nodes]
        assert images == [["shown.png"], [], [], [], ["blue.png"], []]
        assert Path(nodes[0].message.images[0]).read_bytes() == (place / "red.png").read_bytes()
    with Model.load(place / "tiny-F32.gguf") as model:
        prompts = [build_prompt(context_of(None, [node.message for node in nodes[:end]]), model) for end in (1, 3, 5)]
    assert [sum(number < 0 for number in prompt.ids) for prompt in prompts] == [POSITIONS, POSITIONS, 2 * POSITIONS]
    assert [reply["prompt_tokens"] for reply in (first, second, third)] == [len(prompt.ids) for prompt in prompts]


def test_images_of_a_batch_are_seen_as_one_by_one(place: Path, tmp_path: Path) -> None:
    images: list[list[str]] = [["red.png"], [], ["blue.png"], ["red.png", "blue.png"], ["blue.png"], ["red.png"] * 5]
    rows = [{"prompt": "what is this", "images": [str(place / name) for name in names]} for names in images]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--temp", "0", "--max-tokens", "8", "--ctx", "512")
    done = chat(place / "tiny-F32.gguf", "--batch", tmp_path / "q.jsonl", *options)
    assert done.returncode == 0, done.stderr
    together = [json.loads(line) for line in done.stdout.splitlines()]
    assert together[2]["answer"] == together[4]["answer"] != together[0]["answer"]
    for names, row in list(zip(images, together, strict=True))[2:4]:
        shown = [part for name in names for part in ("--image", place / name)]
        alone = json.loads(chat(place / "tiny-F32.gguf", "-p", "what is this", *options, *shown, "--json").stdout)
        assert (row["answer"], row["prompt_tokens"]) == (alone["answer"], alone["prompt_tokens"])
    (tmp_path / "q.jsonl").write_text('{"prompt": "x", "images": ["gone.png"]}')
    done = chat(place / "tiny-F32.gguf", "--batch", tmp_path / "q.jsonl")
    assert done.returncode == 2
    assert f"q.jsonl:1: there is no image {tmp_path / 'gone.png'}" in done.stderr


def test_an_endpoint_gets_the_image_itself(place: Path) -> None:
    message = {"role": "user", "content": "what", "images": [str(place / "red.png")]}
    (sent,) = request_body("m", [message], ReplyOptions())["messages"]
    assert [part["type"] for part in sent["content"]] == ["image_url", "text"]
    assert sent["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--image", "nowhere.png"), "cannot be read"),
        (("--image", "tiny-F32.gguf"), "is no image"),
        (("--image", "red.png", "--mmproj", "tiny-F32.gguf"), "not an mmproj"),
        (("--image", "red.png", "--mmproj", "other.gguf"), "embeddings of width 128"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(place: Path, arguments: tuple[str, ...], complaint: str) -> None:
    write_projector(place / "other.gguf", projection=128)
    files = (place / text if "." in text else text for text in arguments)
    done = chat(place / "tiny-F32.gguf", "-p", "what", *files)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_model_without_a_projector_says_so(place: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.gguf").symlink_to(place / "tiny-F32.gguf")
    done = chat(tmp_path / "alone.gguf", "-p", "what", "--image", place / "red.png")
    assert done.returncode == 2
    assert "there is no mmproj that fits" in done.stderr
