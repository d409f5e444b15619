"""Which GGUF is taken when none, a run or a directory is named."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from ftllm.catalogue import best, candidates, check_model, choose
from ftllm.errors import UserError


def write_gguf(path: Path, size: int = 8, kind: str = "model", architecture: str = "llama") -> Path:
    """A GGUF of one F32 tensor of `size` elements."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_tensor("t", np.zeros(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_run(root: Path, name: str, started: str, *types: str) -> Path:
    (root / name / "gguf").mkdir(parents=True)
    (root / name / "manifest.json").write_text(json.dumps({"status": "finished", "started": started}))
    for number, kind in enumerate(types):
        write_gguf(root / name / "gguf" / f"nano-{name}-{kind}.gguf", 8 + 64 * number)
    return root / name


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("types", "taken"),
    [
        (("F16", "Q8_0", "Q4_K_M", "Q6_K"), "Q4_K_M"),
        (("Q8_0", "Q2_K", "F32"), "Q2_K"),  # the larger of the two quantized ones here
        (("F32", "BF16"), "BF16"),
    ],
)
def test_a_runs_file(types: tuple[str, ...], taken: str) -> None:
    make_run(Path("runs"), "a", "2026-01-01", *types)
    for named in ("a", "runs/a"):
        choice = choose(named)
        assert choice.path.name == f"nano-a-{taken}.gguf"
        assert choice.origin == "run a"


def test_without_an_argument_the_newest_run_with_a_gguf() -> None:
    make_run(Path("runs"), "b-older", "2026-01-01", "Q4_K_M")
    make_run(Path("runs"), "a-newer", "2026-01-02", "Q4_K_M")
    make_run(Path("runs"), "c-newest", "2026-01-03")
    assert choose(None).path.name == "nano-a-newer-Q4_K_M.gguf"


def test_without_runs_the_nano_model() -> None:
    write_gguf(Path("gguf/other-Q4_K_M.gguf"))
    with pytest.raises(UserError, match="no model to talk to"):
        choose(None)
    write_gguf(Path("gguf/nano-Q8_0.gguf"))
    assert choose(None).path == Path("gguf/nano-Q8_0.gguf")
    write_gguf(Path("gguf/nano-Q4_K_M.gguf"))
    choice = choose(None)
    assert (choice.path, choice.origin) == (Path("gguf/nano-Q4_K_M.gguf"), "the nano model")


def test_what_to_do_when_there_is_none() -> None:
    with pytest.raises(UserError) as caught:
        choose(None)
    assert "ftllm demo" in caught.value.hint
    make_run(Path("runs"), "a", "2026-01-01")
    with pytest.raises(UserError, match="the run a is not exported") as caught:
        choose(None)
    assert caught.value.hint == "make one: `ftllm export a`"
    with pytest.raises(UserError, match="the run a has no GGUF"):
        choose("a")
    with pytest.raises(UserError, match="no such GGUF file"):
        choose("b")


def test_a_path_wins_over_a_run() -> None:
    make_run(Path("runs"), "same", "2026-01-01", "Q4_K_M")
    write_gguf(Path("same"))
    assert choose("same").path == Path("same")


def test_what_is_not_a_model_is_left_out() -> None:
    folder = Path("folder")
    write_gguf(folder / "mmproj-model-F16.gguf", 500, kind="mmproj")
    write_gguf(folder / "old-mmproj-Q8_0.gguf", 500, architecture="clip")
    write_gguf(folder / "my-LoRA-F16.gguf", 500, kind="adapter")
    write_gguf(folder / "model.imatrix.gguf", 500, kind="imatrix")
    write_gguf(folder / "my-lora-run-Q5_K_M.gguf", 8)
    (folder / "half-Q4_K_M.gguf.partial").write_bytes(b"")
    assert [candidate.path.name for candidate in candidates(folder.glob("*.gguf"))] == ["my-lora-run-Q5_K_M.gguf"]
    assert choose("folder").path.name == "my-lora-run-Q5_K_M.gguf"
    with pytest.raises(UserError, match="of kind 'adapter'"):
        choose("folder/my-LoRA-F16.gguf")
    with pytest.raises(UserError, match="of kind 'mmproj'"):
        check_model(folder / "old-mmproj-Q8_0.gguf")


def test_shards_count_together_and_the_first_is_loaded() -> None:
    for number in (1, 2, 3):
        write_gguf(Path(f"d/big-Q8_0-0000{number}-of-00003.gguf"), 100)
    write_gguf(Path("d/small-Q6_K.gguf"), 200)
    chosen = best(Path("d").glob("*.gguf"))
    assert chosen is not None
    assert chosen.path.name == "big-Q8_0-00001-of-00003.gguf"
    assert len(candidates(Path("d").glob("*.gguf"))) == 2


def test_a_link_to_nowhere_is_no_model() -> None:
    sound = write_gguf(Path("models/a-Q8_0.gguf"))
    Path("models/b-Q4_K_M.gguf").symlink_to("/nowhere/b.gguf")
    assert [candidate.path for candidate in candidates(Path("models").glob("*.gguf"))] == [sound]


def test_an_empty_directory() -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match="holds no GGUF"):
        choose("empty")


def test_a_chosen_file_that_is_cut_short_is_named() -> None:
    run = make_run(Path("runs"), "a", "2026-01-01", "Q4_K_M")
    (path,) = (run / "gguf").iterdir()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"nano-a-Q4_K_M\.gguf is cut short"):
        choose(None)
