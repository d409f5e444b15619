"""`ftllm export` from outside: what it prints, what it leaves, how it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftllm.errors import WorkError
from ftllm.export import checkpoint
from ftllm.export.child import Child, Events, _waiting, prepared
from ftllm.files import sha256_file
from ftllm.llama.header import read_header
from ftllm.runs import Run

ROOT = Path(__file__).parents[2]
OLLAMA = {"Modelfile", "params", "template"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ftllm", "export", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def export(*arguments: object, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=600
    )


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture
def run(lora: Any, nano: Path, converter: Any, tmp_path: Path) -> Run:
    """A finished run on the nano model, as training leaves it."""
    del converter
    made = Run(tmp_path / "runs" / "ft-001")
    made.path.mkdir(parents=True)
    shutil.copytree(lora.adapter, made.adapter)
    hashes = {path.name: sha256_file(path) for path in checkpoint.base_files(nano)}
    base = {"path": str(nano), "files": hashes}
    made.write_manifest({"status": "finished", "started": "2026-01-01", "base": base, "config": {"preset": "ft"}})
    return made


def test_the_latest_run_becomes_verified_files(run: Run, tmp_path: Path) -> None:
    done = export("--quant", "q4_k_m,F32", "--json", place=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = events(done.stdout)
    last = seen[-1]
    assert last["event"] == "done"
    assert last["verified"] is True
    assert [file["type"] for file in last["files"]] == ["Q4_K_M", "F32"]
    assert {event["event"] for event in seen} >= {"plan", "progress", "verified", "done"}
    for file in last["files"]:
        path = tmp_path / file["path"]
        assert path == run.gguf / f"nano-ft-001-{file['type']}.gguf"
        assert file["bytes"] == path.stat().st_size
        assert file["sha256"] == sha256_file(path)
    assert last["files"][1]["verification"]["kl_divergence"] < 1e-4
    record = json.loads((run.gguf / "export.json").read_text())["files"]
    assert {path.name for path in run.gguf.iterdir()} == {"export.json", *OLLAMA, *record}
    modelfile = (run.gguf / "Modelfile").read_text().splitlines()
    assert modelfile[1] == "FROM ./nano-ft-001-Q4_K_M.gguf"
    assert 'PARAMETER stop "<end_of_turn>"' in modelfile
    entry = record["nano-ft-001-Q4_K_M.gguf"]
    assert entry["tensors_changed_by_adapter"] == 42
    assert entry["source"]["base_files"]["model.safetensors"]
    header = read_header(run.gguf / "nano-ft-001-Q4_K_M.gguf")
    assert entry["bits_per_weight"] == pytest.approx(header.bits_per_weight)
    assert header.metadata["ftllm.run"] == "ft-001"
    assert header.metadata["general.base_model.0.name"] == "nano"
    assert header.file_type == "Q4_K_M"


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    done = export("ft-001", "--dry-run", "--json", place=tmp_path)
    assert done.returncode == 0, done.stderr
    last = events(done.stdout)[-1]
    assert last["dry_run"] is True
    assert last["verified"] is False
    assert last["files"][0]["bytes"] > 3_000_000
    assert not run.gguf.exists()


def test_a_tokenizer_saved_again_is_caught(copy_of_nano: Path, converter: Any, tmp_path: Path) -> None:
    """transformers 5 writes no `added_tokens_decoder`: beside it, tokenizer.model alone converts, but wrongly."""
    del converter
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(copy_of_nano).save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        shutil.copy(path, copy_of_nano)
    config = json.loads((copy_of_nano / "tokenizer_config.json").read_text())
    assert "added_tokens_decoder" not in config
    done = export(copy_of_nano, "--out", tmp_path / "out", place=tmp_path)
    assert done.returncode == 1
    assert "failed its verification" in done.stderr
    assert "_of_turn>" in done.stderr or "splits text" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_key_that_matches_nothing_is_refused(lora: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    adapter = shutil.copytree(lora.adapter, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.5.mlp", "layers.6.mlp"): values for name, values in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    done = export(adapter, "--out", tmp_path / "out", "--verify", "none", place=tmp_path)
    assert done.returncode == 2
    assert "the adapter changes model.layers.6.mlp.down_proj, which nano does not have" in done.stderr
    assert not (tmp_path / "out").exists()


def test_control_c_leaves_nothing(nano: Path, converter: Any, tmp_path: Path) -> None:
    del converter
    arguments = command(nano, "--out", tmp_path / "out", "--quant", "F32,IQ3_S,Q4_K_M", "--json")
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "progress":
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted"
    assert list((tmp_path / "out").iterdir()) == []
    assert not psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(shallow: Path, convert: Any, tmp_path: Path) -> None:
    """One of two files cannot grow: the work ends with one line, and both unfinished files go."""
    (tmp_path / "Q8_0.gguf").symlink_to("/dev/full")
    with pytest.raises(WorkError, match=f"no space left while writing {tmp_path}"):
        convert(shallow, None, ["Q4_K_M", "Q8_0"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (["--quant", "Q4_KM"], "'Q4_KM' is not a quantization type", "did you mean Q4_K_M?"),
        (["--tensor-type", "ffn_down"], "'ffn_down' is not REGEX=TYPE", "ffn_down=Q6_K"),
        (["--tensor-type", "ffn_down=Q6K"], "'Q6K' is not a tensor type", "did you mean Q6_K?"),
        (["--tensor-type", "(=Q6_K"], "'(' is not a regular expression", "brackets"),
        (["--split-max-size", "5"], "'5' is not a size", "5G"),
        (["--imatrix", "nothing.gguf"], "nothing.gguf is not an importance matrix", "llama-imatrix"),
        (["--imatrix", "best", "--verify", "none"], "--imatrix best measures every file", "--imatrix auto"),
        ([], "no finished run in runs", "ftllm train"),
        (["nowhere"], "no run or directory called nowhere", "runs"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(arguments: list[str], says: str, hint: str, tmp_path: Path) -> None:
    done = export(*arguments, place=tmp_path)
    assert done.returncode == 2
    error, help_ = done.stderr.strip().splitlines()
    assert says in error
    assert hint in help_


def test_a_full_disk_is_foreseen(tmp_path: Path) -> None:
    from ftllm.export.preflight import Room, require

    with pytest.raises(WorkError, match=r"no space left: the files take 2\.0 GB"):
        require(Room(2_000_000_000, 1_000_000_000, 0, None), tmp_path)
    with pytest.raises(WorkError, match="not enough memory"):
        require(Room(1, 2, 3_000_000_000, 1_000_000_000), tmp_path)


def test_a_model_larger_than_memory_is_read_matrix_by_matrix(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftllm.export import preflight

    gib = 1 << 30
    free = 16 * gib
    monkeypatch.setattr(preflight, "memory_free", lambda: free)
    small = checkpoint.extent(nano)
    assert (small.parameters, small.largest, small.rows, small.width) == (5_250_048, 2048 * 256, 2048, 2)
    assert (small.mixed, small.experts, small.inner, small.heads) == (False, 0, 768, 4)
    found = preflight.reference(small)
    assert found.whole
    assert found.memory == preflight.PROCESS + 7 * 4 * 48 * 2048  # the weights stay in their file
    more = preflight.reference(small, full=True).memory - found.memory
    assert more == 4 * 4096 * (3 * 1024 * 4 + 4 * 768) + 5_250_048
    assert preflight.reference(small, adapter=1000).memory == found.memory + 4000
    gemma = checkpoint.Extent(27_000_000_000, 262_144 * 5376, 262_144, 2)
    assert preflight.reference(gemma).whole
    assert preflight.reference(gemma).memory < gib
    mixed = preflight.reference(replace(gemma, mixed=True))  # 101 GiB in float32
    assert not mixed.whole
    assert 6 * gemma.largest < mixed.memory < 10 * gib
    preflight.require_reference(mixed)
    experts = replace(
        gemma, experts=1_000_000_000, layer=100_000_000
    )  # put together: 16 bits each, a layer's in float32
    more = preflight.reference(experts).memory - preflight.reference(gemma).memory
    assert more == 2 * 1_000_000_000 + 4 * 100_000_000
    free = 4 * gib
    assert not preflight.reference(experts).whole
    with pytest.raises(WorkError, match="not enough memory to verify"):
        preflight.require_reference(mixed)


def drain(events_: Events) -> None:
    while True:
        events_.next()


def test_a_worker_that_dies_is_the_work_failing(tmp_path: Path) -> None:
    job = {"converter": str(tmp_path), "base": str(tmp_path), "adapter": None}
    events_ = Events()
    worker = Child("converting", "ftllm.export.worker", job, events_)
    try:
        with pytest.raises(WorkError, match=r"converting process ended with code 1: .*No module named 'conversion'"):
            drain(events_)
    finally:
        worker.kill()


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Child]]:
    """Starts processes that run a line of Python, all of them telling the same events."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started: list[Child] = []
    told = Events()

    def start(code: str) -> Child:
        (tmp_path / f"child{len(started)}.py").write_text(code)
        started.append(Child("telling", f"child{len(started)}", {}, told))
        return started[-1]

    yield start
    for child in started:
        child.kill()


LIVES = "import time; time.sleep(60)"


def test_prepared_processes_are_taken_or_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    says = "print(json.dumps({'event': 'is', 'pid': os.getpid(), **json.loads(input())}), flush=True)"
    for name in ("taken", "spare"):
        (tmp_path / f"{name}.py").write_text(f"import json, os\n{says}\n{LIVES}")
    with prepared("taken", "spare"):
        (taken, _), (spare, _) = _waiting["taken"], _waiting["spare"]
        with prepared("taken"):  # there is one, which is not ended here
            assert _waiting["taken"][0] is taken
        child = Child("telling", "taken", {"job": 1}, events := Events())
        assert events.next(child)[1] == {"event": "is", "pid": taken.pid, "job": 1}
        other = Child("telling", "taken", {"job": 2}, events)
        assert events.next(other)[1]["pid"] not in (taken.pid, spare.pid)
    assert not _waiting
    assert spare.returncode == -signal.SIGKILL
    assert not child.dead
    for one in (child, other):
        one.kill()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("pass", "the telling process ended with code 0: it said nothing"),
        ("import os; os.close(1); " + LIVES, "the telling process was killed by SIGKILL"),
        ("import subprocess; subprocess.Popen(['sleep', '60']); import os; os._exit(0)", "ended with code 0"),
        ("print('hello', flush=True); " + LIVES, "was killed by SIGKILL"),
    ],
    ids=["ends", "closes its output", "leaves a process behind", "says what is no event"],
)
def test_a_child_that_ends_without_an_answer_is_noticed_while_another_lives(
    code: str, says: str, children: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftllm.export.child.GRACE", 0.2)
    other, silent = children(LIVES), children(code)
    with pytest.raises(WorkError, match=says):
        silent.events.next(silent)
    assert not other.dead


def test_a_killed_child_is_noticed_while_another_is_waited_for(children: Callable[[str], Child]) -> None:
    other, killed = children(LIVES), children(LIVES)
    os.kill(killed._process.pid, signal.SIGKILL)
    with pytest.raises(WorkError, match="the telling process was killed by SIGKILL"):
        other.events.next(other)


def test_what_a_child_said_before_its_end_is_heard(children: Callable[[str], Child]) -> None:
    children(LIVES)
    child = children("""print('{"event": "written"}')""")
    assert child.events.next(child) == (child, {"event": "written"})
    with pytest.raises(WorkError, match="ended with code 0"):
        child.events.next(child)


def test_a_killed_child_that_cannot_end_yet_is_left_to_itself(
    children: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the system writes its file to the disk: a signal does not reach it."""
    child = children(LIVES)
    with monkeypatch.context() as patched:
        patched.setattr("ftllm.export.child.kill_group", lambda _: None)
        started = time.monotonic()
        child.kill()
        assert time.monotonic() - started < 1.0
    assert not child.dead
