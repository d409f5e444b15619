"""Files that are whole or not there: shards, and going on from what a killed export left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_export_command import command, environment, events, export

from ftllm.errors import UserError
from ftllm.export import targets
from ftllm.export.quants import Wanted
from ftllm.export.targets import Target
from ftllm.files import sha256_file
from ftllm.llama.header import Header, read_header


def contents(headers: list[Header]) -> dict[str, tuple[str, bytes]]:
    """Every tensor's type and bytes."""
    found = {}
    for header in headers:
        data = header.path.read_bytes()
        for tensor in header.tensors:
            found[tensor.name] = (tensor.type, data[tensor.offset : tensor.offset + tensor.nbytes])
    return found


def test_shards_hold_what_one_file_holds(nano: Path, converter: Any, tmp_path: Path) -> None:
    del converter
    whole = export(nano, "--quant", "Q8_0", "--out", tmp_path / "whole", "--verify", "none", place=tmp_path)
    assert whole.returncode == 0, whole.stderr
    done = export(
        nano, "--quant", "Q8_0", "--out", tmp_path / "out", "--split-max-size", "2M", "--json", place=tmp_path
    )
    assert done.returncode == 0, done.stderr
    files = events(done.stdout)[-1]["files"]
    assert [Path(file["path"]).name for file in files] == [
        "nano-Q8_0-00001-of-00003.gguf",
        "nano-Q8_0-00002-of-00003.gguf",
        "nano-Q8_0-00003-of-00003.gguf",
    ]
    for file in files:
        path = Path(file["path"])
        assert (file["bytes"], file["sha256"]) == (path.stat().st_size, sha256_file(path))
        assert path.stat().st_size < 2_200_000
    headers = [read_header(Path(file["path"])) for file in files]
    one = read_header(tmp_path / "whole" / "nano-Q8_0.gguf")
    assert contents(headers) == contents([one])
    for number, header in enumerate(headers):
        assert header.metadata["split.no"] == number
        assert header.metadata["split.count"] == 3
        assert header.metadata["split.tensors.count"] == len(one.tensors)
    assert {key for key in headers[0].metadata if not key.startswith("split.")} == set(one.metadata)
    entry = json.loads((tmp_path / "out" / "export.json").read_text())["files"]["nano-Q8_0-00001-of-00003.gguf"]
    assert [part["sha256"] for part in entry["shards"]] == [file["sha256"] for file in files]
    assert entry["bytes"] == sum(file["bytes"] for file in files)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "export.json",
        *sorted(Path(file["path"]).name for file in files),
    ]


@pytest.mark.slow
def test_shards_are_those_llama_gguf_split_writes(nano: Path, convert: Any, tools: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    whole = convert(nano, None, ["Q6_K"], tmp_path)["Q6_K"]
    split = [str(tools / "llama-gguf-split"), "--split-max-size", "1M", str(whole), str(tmp_path / "theirs" / "Q6_K")]
    subprocess.run(split, check=True, capture_output=True)
    convert(nano, None, ["Q6_K"], tmp_path / "ours", split=1_000_000)
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert len(theirs) > 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == theirs


def test_a_killed_export_goes_on_from_what_is_whole(nano: Path, converter: Any, tmp_path: Path) -> None:
    """Killed while it verifies: types that have their name are kept, the rest is made; the bytes are the same."""
    del converter
    out = tmp_path / "out"
    arguments = ["--out", out, "--quant", "Q4_0,Q8_0,Q5_0", "--json"]
    process = subprocess.Popen(
        command(nano, *arguments), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += json.loads(line)["event"] == "verified"
        if seen == 2:  # the first has its name by then
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    first = out / "nano-Q4_0.gguf"
    before = (first.stat().st_mtime_ns, sha256_file(first))
    done = export(nano, *arguments, place=tmp_path)
    assert done.returncode == 0, done.stderr
    files = events(done.stdout)[-1]["files"]
    assert [file["type"] for file in files] == ["Q4_0", "Q8_0", "Q5_0"]
    assert files[0]["kept"] is True
    assert "kept" not in files[2]
    assert (first.stat().st_mtime_ns, sha256_file(first)) == before
    assert sorted(path.suffix for path in out.iterdir()) == [".gguf", ".gguf", ".gguf", ".json"]
    again = export(nano, "--out", tmp_path / "again", "--quant", "Q5_0", "--verify", "none", place=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "nano-Q5_0.gguf").read_bytes() == (out / "nano-Q5_0.gguf").read_bytes()


def test_other_inputs_or_a_changed_file_are_made_again(nano: Path, converter: Any, tmp_path: Path) -> None:
    del converter
    arguments = ["--out", tmp_path / "out", "--quant", "Q8_0", "--verify", "none", "--json"]
    path = tmp_path / "out" / "nano-Q8_0.gguf"

    def kept(*more: object) -> bool:
        done = export(nano, *arguments, *more, place=tmp_path)
        assert done.returncode == 0, done.stderr
        return bool(events(done.stdout)[-1]["files"][0].get("kept"))

    assert not kept()
    right = path.read_bytes()
    assert kept()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert not kept()
    assert path.read_bytes() == right
    assert not kept("--tensor-type", "ffn_down=Q4_0")
    assert path.read_bytes() != right


def test_two_exports_do_not_write_to_one_directory(tmp_path: Path) -> None:
    with (
        targets.writing_to(tmp_path / "out", "x"),
        pytest.raises(UserError, match="another export is writing to"),
        targets.writing_to(tmp_path / "out", "x"),
    ):
        pass


def test_only_its_own_unfinished_files_are_removed(tmp_path: Path) -> None:
    target = Target(Wanted("Q8_0"), tmp_path, "mine")
    target.partials(1)[0].touch()
    target.begin(3)[1].touch()
    (tmp_path / "download.partial").touch()
    (tmp_path / "mine-Q4_K_M.gguf").touch()
    with targets.writing_to(tmp_path, "mine"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download.partial", "mine-Q4_K_M.gguf"]
    shutil.rmtree(tmp_path)
