"""`ftllm chat --image` with a tiny vision model: what is seen matters, and what is wrongly given is one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from chat_command import ROOT, chat

sys.path.insert(0, str(ROOT / "tests" / "llama"))

from tiny_gemma import write_gemma
from tiny_vision import POSITIONS, write_png, write_projector

from ftllm.chat.memory import Memory
from ftllm.chat.options import ReplyOptions
from ftllm.chat.prompt import build_prompt
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
    def prompt(model: Model, image: str, *turns: str) -> tuple[int, ...]:
        messages = [{"role": "user" if n % 2 == 0 else "assistant", "content": turn} for n, turn in enumerate(turns)]
        return build_prompt([{**messages[0], "images": [str(place / image)]}, *messages[1:]], model).ids

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
            kept, new = logits(memory, other)
            assert kept <= image[0]
            assert new == pytest.approx(logits(Memory(fresh), other)[1], abs=1e-3)
            assert max(abs(a - b) for a, b in zip(new, logits(memory, first)[1], strict=True)) > 0.1


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
        (("--image", "red.png", "--session", "s"), "--image goes with -p"),
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
