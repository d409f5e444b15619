"""`--mmproj`: the vision part beside the model, and an image shown to both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make
from tiny_vision import write_png

from ftllm.errors import UserError
from ftllm.export.pipeline import ExportRequest, export
from ftllm.export.side import old_name
from ftllm.llama.header import read_header
from ftllm.progress import Reporter


def ftllm(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftllm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3-vision-4", "gemma3-vision-5"])
def test_an_image_is_seen(family: str, converter: Any, tmp_path: Path) -> None:
    """Checkpoints with the keys of transformers 4, and those saved again by transformers 5."""
    del converter
    tiny = make(family, tmp_path)
    out = tmp_path / "out"
    done = ftllm("export", tiny.adapter, "--quant", "Q8_0", "--mmproj", "--out", out, "--quiet", "--offline")
    assert done.returncode == 0, done.stderr
    model, projector = map(Path, done.stdout.split())
    assert projector.name == "mmproj-base-adapter-F16.gguf"
    header = read_header(projector)
    assert header.architecture == "clip"
    assert header.metadata["clip.projector_type"] == "gemma3"
    answers = {}
    for colour in ((250, 0, 0), (0, 0, 250)):
        picture = write_png(tmp_path / f"{colour[0]}.png", colour, 56)
        common = ("--temp", 0, "--max-tokens", 12, "--json", "--offline")
        chat = ftllm("chat", model, "--mmproj", projector, "--image", picture, "-p", "What is this?", *common)
        assert chat.returncode == 0, chat.stderr
        answers[colour] = chat.stdout
    assert len(set(answers.values())) == 2  # random weights, but they see the difference


def test_names_of_both_versions() -> None:
    assert old_name("model.vision_tower.vision_model.x") == "vision_tower.vision_model.x"
    assert old_name("model.multi_modal_projector.y") == "multi_modal_projector.y"
    assert old_name("vision_tower.x") == "vision_tower.x"


def test_a_model_without_one_is_refused(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nano has no vision part"):
        export(ExportRequest(str(nano), out=tmp_path, mmproj=True), Reporter(quiet=True))
    assert list(tmp_path.iterdir()) == []
