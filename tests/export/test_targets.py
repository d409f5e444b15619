"""Files that are whole or not there: shards, and going on from what a killed export left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_models import gguf_name
from safetensors.torch import load_file
from test_export_command import OLLAMA, command, environment, events, export

from ftllm.errors import UserError
from ftllm.export import blocks, targets
from ftllm.export.quants import Wanted
from ftllm.export.targets import Target
from ftllm.files import sha256_file
from ftllm.llama.header import read_header


@dataclass(frozen=True)
class Exported:
    """An export of the nano model as Q8_0, in shards, and Q4_0, which fits in one."""

    out: Path
    arguments: tuple[object, ...]
    files: list[dict[str, Any]]

    def again(self, *more: object) -> list[dict[str, Any]]:
        """Export once more; the last values of options given twice count."""
        done = export(*self.arguments, *more, place=self.out.parent)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = events(done.stdout)[-1]["files"]
        return found


@pytest.fixture(scope="module")
def exported(nano: Path, converter: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    del converter
    out = tmp_path_factory.mktemp("exported") / "out"
    arguments = (nano, "--quant", "Q8_0,Q4_0", "--out", out, "--verify", "none", "--json", "--split-max-size", "4M")
    first = Exported(out, arguments, [])
    return replace(first, files=first.again())


def test_shards_hold_the_whole_model(exported: Exported, nano: Path) -> None:
    files = [file for file in exported.files if file["type"] == "Q8_0"]
    names = ["nano-Q8_0-00001-of-00002.gguf", "nano-Q8_0-00002-of-00002.gguf"]
    assert [Path(file["path"]).name for file in files] == names
    for file in exported.files:
        path = Path(file["path"])
        assert (file["bytes"], file["sha256"]) == (path.stat().st_size, sha256_file(path))
        assert path.stat().st_size < 4_200_000
    headers = [read_header(Path(file["path"])) for file in files]
    one = read_header(exported.out / "nano-Q4_0.gguf")
    assert [tensor.name for header in headers for tensor in header.tensors] == [tensor.name for tensor in one.tensors]
    for number, header in enumerate(headers):
        assert header.metadata["split.no"] == number
        assert header.metadata["split.count"] == 2
        assert header.metadata["split.tensors.count"] == len(one.tensors)
    assert {key for key in headers[0].metadata if not key.startswith("split.")} == set(one.metadata)
    weights = load_file(nano / "model.safetensors")
    for header in headers:
        for info in header.tensors:
            if info.name.startswith("blk.") and len(info.shape) == 2:
                data = np.fromfile(header.path, np.uint8, info.nbytes, offset=info.offset)
                values = blocks.dequantize(blocks.NUMBERS[info.type], data, info.shape[0])
                right = next(weight for name, weight in weights.items() if gguf_of(name) == info.name).float().numpy()
                assert np.abs(values - right).max() < 0.01 * np.abs(right).max(), info.name
    entry = json.loads((exported.out / "export.json").read_text())["files"][names[0]]
    assert [part["sha256"] for part in entry["shards"]] == [file["sha256"] for file in files]
    assert entry["bytes"] == sum(file["bytes"] for file in files)


def gguf_of(name: str) -> str | None:
    """The GGUF name of a checkpoint's tensor, None where it is no linear layer."""
    return gguf_name(name.removesuffix(".weight")) if name.endswith("_proj.weight") else None


def test_what_is_whole_is_kept_and_the_rest_made_again_to_the_byte(exported: Exported) -> None:
    assert all(file["kept"] for file in exported.again())
    second = exported.out / "nano-Q8_0-00002-of-00002.gguf"
    right = second.read_bytes()
    second.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    (exported.out / "nano-Q8_0.partial").mkdir()  # as a killed export leaves it
    (exported.out / "nano-Q8_0.partial" / second.name).write_bytes(right[:1000])
    made = exported.again()
    assert [bool(file.get("kept")) for file in made] == [False, False, True]
    assert second.read_bytes() == right
    names = {"export.json", *OLLAMA, *(Path(file["path"]).name for file in made)}
    assert {path.name for path in exported.out.iterdir()} == names


def test_other_inputs_are_made_again_and_other_shards_take_the_place_of_the_old(exported: Exported) -> None:
    before = (exported.out / "nano-Q4_0.gguf").read_bytes()
    made = exported.again("--split-max-size", "9M", "--tensor-type", "ffn_down=Q5_0")
    assert [Path(file["path"]).name for file in made] == ["nano-Q8_0.gguf", "nano-Q4_0.gguf"]
    assert not any(file.get("kept") for file in made)
    assert (exported.out / "nano-Q4_0.gguf").read_bytes() != before
    names = {"nano-Q4_0.gguf", "nano-Q8_0.gguf"}
    assert {path.name for path in exported.out.iterdir()} == {"export.json", *OLLAMA, *names}
    assert set(json.loads((exported.out / "export.json").read_text())["files"]) == names


@pytest.mark.slow
def test_what_passed_the_quick_verification_is_verified_again_where_it_is(
    shallow: Path, converter: Any, tmp_path: Path
) -> None:
    """In shards, beside a type that is new; a file that full finds a fault in loses its name."""
    del converter
    out = tmp_path / "out"
    arguments = (shallow, "--out", out, "--split-max-size", "1M", "--json")
    first = export(*arguments, "--quant", "Q8_0", place=tmp_path)
    assert first.returncode == 0, first.stderr
    shards = sorted(out.glob("*.gguf"))
    assert len(shards) > 1
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in shards}
    both = export(*arguments, "--quant", "Q8_0,Q4_0", "--verify", "full", place=tmp_path)
    assert both.returncode == 0, both.stderr
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in shards} == before
    files = events(both.stdout)[-1]["files"]
    assert all(file.get("kept") and "nll" in file["verification"] for file in files if file["type"] == "Q8_0")
    assert not any(file.get("kept") for file in files if file["type"] == "Q4_0")
    record = json.loads((out / "export.json").read_text())
    assert {entry["verify"] for entry in record["files"].values()} == {"full"}
    again = export(*arguments, "--quant", "Q8_0,Q4_0", "--verify", "full", place=tmp_path)
    assert all(file["kept"] for file in events(again.stdout)[-1]["files"])

    header = read_header(shards[0])
    info = next(info for info in header.tensors if info.name == "token_embd.weight")
    data = bytearray(shards[0].read_bytes())
    data[info.offset : info.offset + info.nbytes] = bytes(info.nbytes)
    shards[0].write_bytes(data)
    entry = record["files"][shards[0].name]
    entry["shards"][0]["sha256"] = sha256_file(shards[0])
    entry["verify"] = "quick"  # as if it had been so from the beginning
    (out / "export.json").write_text(json.dumps(record))
    wrong = export(*arguments, "--quant", "Q8_0,Q4_0", "--verify", "full", place=tmp_path)
    assert wrong.returncode == 1
    assert "Q8_0 failed its verification and was removed (1 other files passed and are kept)" in wrong.stderr
    assert not any(path.exists() for path in shards)
    assert {entry["type"] for entry in json.loads((out / "export.json").read_text())["files"].values()} == {"Q4_0"}


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


@pytest.mark.slow
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
    assert len(list(out.glob("*.gguf"))) == 3
    assert not list(out.glob("*.partial"))
    again = export(nano, "--out", tmp_path / "again", "--quant", "Q5_0", "--verify", "none", place=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "nano-Q5_0.gguf").read_bytes() == (out / "nano-Q5_0.gguf").read_bytes()


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
