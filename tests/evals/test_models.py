"""What a name given to `ftllm eval` means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftllm.errors import UserError
from ftllm.evals.models import Checkpoint, default_data, resolve, resolve_all


def make_run(root: Path, name: str, **manifest: Any) -> Path:
    path = root / name
    (path / "gguf").mkdir(parents=True)
    (path / "adapter").mkdir()
    whole = {"status": "finished", "started": "2026-01-01", "base": {"path": str(root / "nano")}, **manifest}
    (path / "manifest.json").write_text(json.dumps(whole))
    return path


def test_a_run_by_name_and_by_path(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    (run / "gguf" / "nano-mine-Q8_0.gguf").write_bytes(b"larger")
    (run / "gguf" / "nano-mine-Q4_K_M.gguf").write_bytes(b"x")
    for given in ("mine", str(run)):
        target = resolve(given, tmp_path)
        assert target.label == "mine"
        assert target.gguf == run / "gguf" / "nano-mine-Q4_K_M.gguf"
        assert target.checkpoint == Checkpoint(str(tmp_path / "nano"), None, run / "adapter", run / "adapter")


def test_without_a_name_the_latest_finished_run(tmp_path: Path) -> None:
    make_run(tmp_path, "old", started="2026-01-01")
    make_run(tmp_path, "new", started="2026-01-02")
    make_run(tmp_path, "newest", started="2026-01-03", status="running")
    assert resolve(None, tmp_path).label == "new"


def test_a_base_on_the_hub_keeps_its_revision(tmp_path: Path) -> None:
    make_run(tmp_path, "mine", base={"repo": "a/b", "revision": "abc"})
    checkpoint = resolve("mine", tmp_path).checkpoint
    assert checkpoint is not None
    assert (checkpoint.base, checkpoint.revision) == ("a/b", "abc")


def test_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"x")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert resolve(str(tmp_path / "m.gguf"), tmp_path).gguf == tmp_path / "m.gguf"
    assert resolve(str(model), tmp_path).checkpoint == Checkpoint(str(model))


def test_a_gguf_of_a_run_knows_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    file = run / "gguf" / "m-Q4_K_M.gguf"
    file.write_bytes(b"x")
    target = resolve(str(file), tmp_path)
    assert (target.checkpoint, target.run and target.run.name) == (None, "mine")


def test_labels_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.gguf").write_bytes(b"x")
    paths = [str(tmp_path / "a" / "m.gguf"), str(tmp_path / "b" / "m.gguf")]
    assert [target.label for target in resolve_all(paths, tmp_path)] == paths
    assert [target.label for target in resolve_all([paths[0], *paths[:1]], tmp_path)] == ["m"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nothing", "no model file, directory or run"),
        ("text.txt", "not a model"),
        ("empty", "neither"),
        ("going", "has not finished"),
    ],
)
def test_complaints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    make_run(tmp_path, "going", status="running")
    with pytest.raises(UserError, match=says) as caught:
        resolve(given, tmp_path)
    assert caught.value.hint


def test_default_data(tmp_path: Path) -> None:
    (tmp_path / "nano").mkdir()
    make_run(tmp_path, "mine")
    with pytest.raises(UserError, match="names no evaluation data"):
        default_data(resolve("mine", tmp_path))
    heldout = tmp_path / "nano" / "heldout.jsonl"
    heldout.write_text("{}")
    assert default_data(resolve("mine", tmp_path)) == [heldout]
    own = tmp_path / "own.jsonl"
    make_run(tmp_path, "named", config={"eval": str(own)})
    with pytest.raises(UserError, match="is not at"):
        default_data(resolve("named", tmp_path))
    own.write_text("{}")
    assert default_data(resolve("named", tmp_path)) == [own, heldout]
    (tmp_path / "m.gguf").write_bytes(b"x")
    with pytest.raises(UserError, match="nothing says") as caught:
        default_data(resolve(str(tmp_path / "m.gguf"), tmp_path))
    assert "--data" in caught.value.hint
