"""Models from the Hub into its cache through the real client: chosen, continued, checked, listed and removed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub_run import write_gguf
from hub_server import Fault, Hub
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

from ftllm import catalogue
from ftllm.errors import UserError, WorkError
from ftllm.hub.cache import remove
from ftllm.hub.names import Reference, parse_reference, quantization
from ftllm.hub.pull import cached, pull
from ftllm.hub.remote import RemoteFile, choose, models, projector
from ftllm.progress import Reporter

ROOT = Path(__file__).resolve().parents[2]
REPO = "org/tiny-GGUF"

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A repository as people publish them: types, shards in a folder, a projector, an importance matrix."""
    made = {
        "tiny-Q2_K.gguf": write_gguf(tmp_path / "a.gguf", "Q2_K", 64),
        "tiny-Q4_K_M.gguf": write_gguf(tmp_path / "b.gguf", "Q4_K_M", 128),
        "Q8_0/tiny-Q8_0-00001-of-00002.gguf": write_gguf(tmp_path / "c.gguf", "Q8_0", 192),
        "Q8_0/tiny-Q8_0-00002-of-00002.gguf": write_gguf(tmp_path / "d.gguf", "Q8_0", 256),
        "mmproj-tiny-F16.gguf": write_gguf(tmp_path / "e.gguf", "F16", 32, general__type="mmproj"),
        "mmproj-tiny-F32.gguf": write_gguf(tmp_path / "f.gguf", "F32", 64, general__type="mmproj"),
        "tiny.imatrix.gguf": write_gguf(tmp_path / "g.gguf", "F32", 32, general__type="imatrix"),
    }
    return {name: path.read_bytes() for name, path in made.items()} | {"README.md": b"# tiny\n"}


@pytest.fixture
def repo(at_hub: Hub, files: dict[str, bytes]) -> Hub:
    at_hub.add(REPO, files)
    return at_hub


@pytest.mark.parametrize(
    ("given", "repo", "revision", "quant"),
    [
        ("a/b", "a/b", None, None),
        ("a/b:q4_k_m", "a/b", None, "Q4_K_M"),
        ("a/b@v1:Q8_0", "a/b", "v1", "Q8_0"),
        ("hf.co/a/b:Q8_0", "a/b", None, "Q8_0"),
        ("https://huggingface.co/a/b-GGUF", "a/b-GGUF", None, None),
    ],
)
def test_references(given: str, repo: str, revision: str | None, quant: str | None) -> None:
    assert parse_reference(given) == Reference(repo, revision, quant)


@pytest.mark.parametrize("given", ["a", "a/b/c", "./a/b", "/a/b", "a b/c", "a/b:", "http://127.0.0.1:8080/v1"])
def test_no_references(given: str) -> None:
    assert parse_reference(given) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gemma-3-4b-it-Q4_K_M.gguf", "Q4_K_M"),
        ("Gemma-3-27b-IT-FT-Reasoning.i1-IQ2_XXS.gguf", "I1-IQ2_XXS"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model.q8_0.gguf", "Q8_0"),
        ("BF16/model-BF16-00001-of-00003.gguf", "BF16"),
        ("Q6_K/model-00001-of-00002.gguf", "Q6_K"),
        ("model.gguf", ""),
        ("Qwen2-7B.gguf", ""),
    ],
)
def test_types_in_names(name: str, kind: str) -> None:
    assert quantization(name) == kind


def remote(**sizes: int) -> list[RemoteFile]:
    return [RemoteFile(f"m-{kind}.gguf", size, "0" * 64) for kind, size in sizes.items()]


@pytest.mark.parametrize(
    ("memory", "taken"),
    [
        (0, "Q4_K_M"),
        (100 << 30, "Q4_K_M"),
        (6 << 30, "Q4_K_M"),  # 4 GiB * 1.1 + 0.4
        (4 << 30, "Q3_K_M"),
        (1 << 30, "Q2_K"),  # nothing fits
    ],
)
def test_the_type_that_fits(memory: int, taken: str) -> None:
    found = models(remote(F16=16 << 30, Q8_0=8 << 30, Q4_K_M=4 << 30, Q3_K_M=3 << 30, Q2_K=2 << 30), "o/m")
    chosen, why = choose(found, Reference("o/m"), memory)
    assert chosen.type == taken
    assert why


def test_a_prefix_may_be_left_out() -> None:
    listed = [RemoteFile(f"m.{kind}.gguf", 1, None) for kind in ("i1-Q4_K_M", "i1-Q2_K")]
    assert choose(models(listed, "o/m"), Reference("o/m", None, "Q2_K"), 0)[0].name == "m.i1-Q2_K.gguf"
    with pytest.raises(UserError, match="has no Q8_0") as caught:
        choose(models(listed, "o/m"), Reference("o/m", None, "Q8_0"), 0)
    assert caught.value.hint == "it has I1-Q2_K, I1-Q4_K_M"


def test_what_is_a_model(files: dict[str, bytes]) -> None:
    listed = [RemoteFile(name, len(content), None) for name, content in files.items()]
    assert [(model.type, len(model.files)) for model in models(listed, REPO)] == [
        ("Q2_K", 1),
        ("Q4_K_M", 1),
        ("Q8_0", 2),
    ]
    found = projector(listed)
    assert found is not None
    assert found.path == "mmproj-tiny-F16.gguf"
    half = [file for file in listed if "00002-of" not in file.path]
    assert [model.type for model in models(half, REPO)] == ["Q2_K", "Q4_K_M"]


def test_a_model_with_its_projector(repo: Hub, files: dict[str, bytes], reporter: Reporter) -> None:
    found = pull(Reference(REPO), reporter)
    assert (found.type, found.path.read_bytes()) == ("Q4_K_M", files["tiny-Q4_K_M.gguf"])
    assert found.mmproj is not None
    assert found.mmproj.read_bytes() == files["mmproj-tiny-F16.gguf"]
    # It is where every other program finds it.
    assert hf_hub_download(REPO, "tiny-Q4_K_M.gguf", local_files_only=True) == str(found.path)
    (known,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert known.size_on_disk == len(files["tiny-Q4_K_M.gguf"]) + len(files["mmproj-tiny-F16.gguf"])
    downloads = len(repo.asked("GET /download/"))
    assert pull(Reference(REPO), reporter).path == found.path
    assert len(repo.asked("GET /download/")) == downloads == 2


@pytest.mark.usefixtures("repo")
def test_shards(files: dict[str, bytes], reporter: Reporter) -> None:
    found = pull(Reference(REPO, None, "Q8_0"), reporter)
    assert [path.read_bytes() for path in catalogue.shards(found.path)] == [
        files["Q8_0/tiny-Q8_0-00001-of-00002.gguf"],
        files["Q8_0/tiny-Q8_0-00002-of-00002.gguf"],
    ]


def test_a_revision(repo: Hub, reporter: Reporter) -> None:
    first = repo.repo(REPO).branches["main"]
    repo.repo(REPO).commit("main", "away", {}, {"tiny-Q4_K_M.gguf"})
    assert pull(Reference(REPO), reporter).type == "Q8_0"
    assert pull(Reference(REPO, first), reporter).type == "Q4_K_M"
    with pytest.raises(UserError, match="has no revision v7"):
        pull(Reference(REPO, "v7"), reporter)


def test_a_cut_download_goes_on(
    repo: Hub, files: dict[str, bytes], reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    repo.faults.append(Fault("GET /download/", after=10_000))
    assert pull(Reference(REPO), reporter).path.read_bytes() == files["tiny-Q4_K_M.gguf"]
    assert [request.headers.get("range") for request in repo.asked("GET /download/")][:2] == [None, "bytes=10000-"]


def test_damage_on_the_way_is_found_and_repaired_once(
    repo: Hub, files: dict[str, bytes], reporter: Reporter, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tiny-Q4_K_M.gguf"
    oid = hashlib.sha256(files[name]).hexdigest()
    blobs = Path(constants.HF_HUB_CACHE) / "models--org--tiny-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{oid}.incomplete").write_bytes(b"\0" * 5000)  # half of another file
    assert pull(Reference(REPO), reporter).path.read_bytes() == files[name]
    assert "is damaged: its SHA-256" in capsys.readouterr().err
    remove(Reference(REPO))
    repo.lfs[oid] = files[name][:-1] + b"\0"
    with pytest.raises(WorkError, match="arrived damaged"):
        pull(Reference(REPO), reporter)
    assert [path.name for path in blobs.iterdir() if oid in path.name] == []


def test_a_full_disk_is_found_before_the_download(
    repo: Hub, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftllm.files.disk_free", lambda _path: 1000)
    with pytest.raises(WorkError, match="no space left"):
        pull(Reference(REPO), reporter)
    assert repo.asked("GET /download/") == []


def test_offline(repo: Hub, reporter: Reporter) -> None:
    with pytest.raises(UserError, match="not on this machine, and this is offline"):
        pull(Reference(REPO), reporter, offline=True)
    assert repo.requests == []
    here = pull(Reference(REPO), reporter)
    asked = len(repo.requests)
    assert pull(Reference(REPO), reporter, offline=True).path == here.path == cached(Reference(REPO)).path
    assert cached(Reference(REPO)).mmproj == here.mmproj
    with pytest.raises(UserError, match="has no Q8_0"):
        cached(Reference(REPO, None, "Q8_0"))
    assert len(repo.requests) == asked


def test_without_a_network_what_is_here_is_taken(
    repo: Hub, reporter: Reporter, capsys: pytest.CaptureFixture[str]
) -> None:
    here = pull(Reference(REPO), reporter)
    repo.close()
    assert pull(Reference(REPO), reporter).path == here.path
    assert "taking what is in the cache" in capsys.readouterr().err
    with pytest.raises(WorkError, match="the Hub cannot be reached"):
        pull(Reference("org/other"), reporter)


def test_what_cannot_be_pulled(repo: Hub, reporter: Reporter) -> None:
    repo.add("org/bare", {"config.json": b"{}"})
    repo.add("org/gated", {"m-Q4_K_M.gguf": b"x"}, gated=True)
    for name, says in (
        ("org/none", "there is no model org/none on the Hub"),
        ("org/bare", "org/bare has no GGUF"),
        ("org/gated", "org/gated is gated"),
    ):
        with pytest.raises(UserError, match=says):
            pull(Reference(name), reporter)


@pytest.mark.usefixtures("repo")
def test_the_list(files: dict[str, bytes], reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pull(Reference(REPO), reporter)
    pull(Reference(REPO, None, "Q8_0"), reporter)
    write_gguf(Path("here-Q2_K.gguf"), "Q2_K")
    write_gguf(Path("runs/r/gguf/tiny-r-Q4_K_M.gguf"), "Q4_K_M")
    Path("runs/r/manifest.json").write_text("{}")
    Path("cut-Q8_0.gguf").write_bytes(files["tiny-Q2_K.gguf"][:-5])
    found = {model.name: model for model in catalogue.everything()}
    known = {"a.gguf", "b.gguf", "c.gguf", "d.gguf"}  # what the fixture wrote here
    assert set(found) - known == {"r", "here-Q2_K.gguf", "cut-Q8_0.gguf", f"{REPO}:Q4_K_M", f"{REPO}:Q8_0"}
    split = found[f"{REPO}:Q8_0"]
    assert (split.origin, split.architecture, split.context) == ("cache", "llama", 2048)
    assert split.size == sum(len(content) for name, content in files.items() if "Q8_0" in name)
    assert split.parameters == (192 + 256) * 256
    assert split.bits_per_weight == 8.5  # 34 bytes a block of 32
    assert split.fits
    assert found["r"].origin == "run r"
    assert "cut short" in found["cut-Q8_0.gguf"].problem


@pytest.mark.usefixtures("repo")
def test_space_is_freed(files: dict[str, bytes], reporter: Reporter) -> None:
    pull(Reference(REPO), reporter)
    pull(Reference(REPO, None, "Q8_0"), reporter)
    eight = sum(len(content) for name, content in files.items() if "Q8_0" in name)
    assert remove(Reference(REPO, None, "Q8_0")) == eight
    assert [model.type for model in catalogue.everything() if model.origin == "cache"] == ["Q4_K_M"]
    with pytest.raises(UserError, match=f"no {REPO}:Q8_0") as caught:
        remove(Reference(REPO, None, "Q8_0"))
    assert caught.value.hint == "it has Q4_K_M"
    assert remove(Reference(REPO)) == len(files["tiny-Q4_K_M.gguf"]) + len(files["mmproj-tiny-F16.gguf"])
    assert catalogue.cached() == []
    with pytest.raises(UserError, match="cache has no"):
        remove(Reference(REPO))


def ftllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ftllm", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def test_ctrl_c_keeps_what_arrived(repo: Hub) -> None:
    """10 MB are what the client writes at once."""
    content = os.urandom(25_000_000)
    repo.add("org/big", {"big-Q4_K_M.gguf": content})
    fault = Fault("GET /download/", after=21_000_000, stalls=True)
    repo.faults.append(fault)
    command = [sys.executable, "-m", "ftllm", "models", "pull", "org/big"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert fault.reached.wait(60)
        partial = (
            Path(constants.HF_HUB_CACHE)
            / "models--org--big/blobs"
            / f"{hashlib.sha256(content).hexdigest()}.incomplete"
        )
        while partial.stat().st_size < 20_000_000:
            pass
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=60)
    fault.release.set()
    assert (child.returncode, output) == (130, "")
    assert "Traceback" not in errors
    done = ftllm("models", "pull", "org/big", "--json")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["bytes"]) == ("done", len(content))
    assert Path(last["path"]).read_bytes() == content
    assert [request.headers.get("range") for request in repo.asked("GET /download/")] == [None, "bytes=20971520-"]


@pytest.mark.usefixtures("repo")
def test_commands(files: dict[str, bytes], tmp_path: Path) -> None:
    assert ftllm("models", "pull", "nonsense").returncode == 2
    assert ftllm("models", "pull").returncode == 2
    done = ftllm("models", "pull", f"{REPO}:Q2_K", "--quiet")
    path, mmproj = map(Path, done.stdout.splitlines())
    assert (path.name, mmproj.name) == ("tiny-Q2_K.gguf", "mmproj-tiny-F16.gguf")
    listed = json.loads(ftllm("models", "list", "--json", "--runs", str(tmp_path)).stdout)["models"]
    (ours,) = [model for model in listed if model["name"] == f"{REPO}:Q2_K"]
    assert (ours["type"], ours["bits_per_weight"], ours["context"]) == ("Q2_K", 8.5, 2048)
    shown = json.loads(ftllm("models", "show", f"{REPO}:Q2_K", "--json").stdout)
    assert (shown["path"], shown["tensors"]) == (str(path), {"Q8_0": {"count": 1, "bytes": 64 * 8 * 34}})
    assert "tiny" in ftllm("models", "show", str(path)).stdout
    assert ftllm("models", "rm", str(path)).returncode == 2
    freed = len(files["tiny-Q2_K.gguf"]) + len(files["mmproj-tiny-F16.gguf"])
    assert ftllm("models", "rm", REPO, "--json").stdout == json.dumps({"removed": REPO, "bytes": freed}) + "\n"
