"""Publishing through the real client: what arrives, in which order, how often, and what happens when things break."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hub_repos import Blob
from hub_run import write_gguf
from hub_server import Fault, Hub

from ftllm.errors import UserError, WorkError
from ftllm.files import sha256_file
from ftllm.hub import publish
from ftllm.hub.push import PushRequest, public, push, rehearse
from ftllm.progress import Reporter
from ftllm.runs import Run

REPO = "owner/think-GGUF"
ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def request_(run: Run) -> PushRequest:
    return PushRequest(REPO, str(run.path))


def test_a_run_is_published_at_once_with_its_card(
    owner: Hub, run: Run, request_: PushRequest, reporter: Reporter
) -> None:
    (done,) = push(request_, reporter)
    repo = owner.repo(REPO)
    models = sorted(path.name for path in run.gguf.glob("*.gguf"))
    beside = ["LICENSE", "README.md", "export.json", "loss.svg"]
    assert sorted(repo.files) == sorted([".gitattributes", *beside, *models])
    for name in models:
        assert repo.files[name] == (run.gguf / name).read_bytes()
    assert [commit.title for commit in repo.history()] == ["initial commit", "Publish Q2_K, Q4_K_M, Q8_0 with ftllm"]
    assert done.commit == repo.branches["main"]
    assert done.url == f"{owner.url}/{REPO}"
    assert owner.uploaded() == sum((run.gguf / name).stat().st_size for name in models)


def test_what_has_not_changed_is_not_sent(owner: Hub, run: Run, request_: PushRequest, reporter: Reporter) -> None:
    push(request_, reporter)
    before, sent = owner.repo(REPO).branches["main"], owner.uploaded()
    (done,) = push(request_, reporter)
    assert (owner.repo(REPO).branches["main"], owner.uploaded()) == (before, sent)
    assert done.sent == ()
    assert len(done.unchanged) == 7
    (run.path / "loss.svg").write_text("<svg/>")
    (done,) = push(request_, reporter)
    assert done.sent == ("loss.svg",)
    assert owner.uploaded() == sent


def test_private_and_revision(owner: Hub, request_: PushRequest, reporter: Reporter) -> None:
    push(replace(request_, private=True, revision="v2"), reporter)
    repo = owner.repo(REPO)
    assert repo.private
    assert sorted(repo.files) == [".gitattributes"]
    assert "gemma-think-Q4_K_M.gguf" in repo.commits[repo.branches["v2"]].files
    assert (
        f"{REPO}/resolve/v2/gemma-think-Q4_K_M.gguf"
        in repo.commits[repo.branches["v2"]].files["README.md"].content.decode()
    )


@pytest.mark.parametrize("revision", ["a b", "a..b", "-x", "x.lock", "a//b", "x/", "", "ä\x1b"])
def test_a_branch_that_git_does_not_allow(owner: Hub, request_: PushRequest, reporter: Reporter, revision: str) -> None:
    with pytest.raises(UserError, match="is no name of a branch"):
        push(replace(request_, revision=revision), reporter)
    assert owner.repos == {}


def test_private_does_not_mean_public(owner: Hub, request_: PushRequest, reporter: Reporter) -> None:
    owner.add(REPO)
    with pytest.raises(UserError, match="exists and is public"):
        push(replace(request_, private=True), reporter)
    assert sorted(owner.repo(REPO).files) == [".gitattributes"]


def test_an_adapter(owner: Hub, run: Run, reporter: Reporter) -> None:
    push(PushRequest("owner/think-lora", str(run.path), adapter=True), reporter)
    files = owner.repo("owner/think-lora").files
    expected = [
        "LICENSE",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.svg",
        "tokenizer.json",
    ]
    assert sorted(files) == [".gitattributes", *expected]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/gemma"
    assert b"base_model_relation: adapter" in files["README.md"]


def test_two_families(owner: Hub, run: Run, reporter: Reporter) -> None:
    write_gguf(run.gguf / "gemma-think-i1-Q4_K_M.gguf", "Q4_K_M", 80, imatrix=True)
    write_gguf(run.gguf / "gemma.imatrix.gguf", "F32", general__type="imatrix")
    with pytest.raises(UserError, match="without"):
        push(PushRequest(REPO, str(only_weighted(run)), both=True), reporter)
    (run.gguf / "Modelfile").write_text("# made\nFROM ./gemma-think-Q4_K_M.gguf\nPARAMETER num_ctx 8192\n")
    push(PushRequest("owner/think", str(run.path), both=True), reporter)
    static, weighted = owner.repo("owner/think-GGUF").files, owner.repo("owner/think-i1-GGUF").files
    assert [name for name in sorted(static) if "imatrix" in name or "i1" in name] == []
    assert [name for name in sorted(weighted) if name.endswith(".gguf")] == [
        "gemma-think-i1-Q4_K_M.gguf",
        "gemma.imatrix.gguf",
    ]
    assert static["Modelfile"] == (run.gguf / "Modelfile").read_bytes()
    assert weighted["Modelfile"] == b"# made\nFROM ./gemma-think-i1-Q4_K_M.gguf\nPARAMETER num_ctx 8192\n"
    assert f"[owner/think-i1-GGUF]({owner.url}/owner/think-i1-GGUF)" in static["README.md"].decode()
    assert f"[owner/think-GGUF]({owner.url}/owner/think-GGUF)" in weighted["README.md"].decode()


def only_weighted(run: Run) -> Path:
    place = run.path.parent.parent / "weighted"
    place.mkdir()
    (place / "a-Q4_K_M.gguf").write_bytes((run.gguf / "gemma-think-i1-Q4_K_M.gguf").read_bytes())
    return place


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /storage/", after=3000),
        Fault("PUT /storage/", status=500, times=7),  # more than the client's own six attempts
        Fault("POST .*/info/lfs", status=503),
        Fault("POST /api/repos/create", status=502),
        Fault("POST .*/commit/", status=504),
        Fault("POST .*/commit/"),
        Fault("GET .*/tree/", status=429, headers={"Retry-After": "1"}),
    ],
    ids=lambda fault: f"{fault.match}-{fault.status or 'cut'}",
)
def test_a_hub_in_trouble_gets_another_chance(
    owner: Hub, request_: PushRequest, reporter: Reporter, fault: Fault
) -> None:
    owner.faults.append(fault)
    push(request_, reporter)
    assert fault.times == 0
    assert len(owner.repo(REPO).files) == 8
    assert len(owner.repo(REPO).history()) == 2


def test_a_lost_answer_to_a_commit_is_no_second_commit(owner: Hub, request_: PushRequest, reporter: Reporter) -> None:
    owner.faults.append(Fault("POST .*/commit/", late=True))
    (done,) = push(request_, reporter)
    assert len(owner.asked("POST .*/commit/")) == 1
    assert done.commit == owner.repo(REPO).branches["main"]
    assert len(owner.repo(REPO).history()) == 2


def test_a_hub_that_stays_in_trouble_publishes_nothing(owner: Hub, request_: PushRequest, reporter: Reporter) -> None:
    fault = Fault("PUT /storage/", status=500, times=1000)
    owner.faults.append(fault)
    with pytest.raises(WorkError, match=r"could not be sent: the Hub has trouble \(error 500\)") as caught:
        push(request_, reporter)
    assert "kept" in caught.value.hint
    assert sorted(owner.repo(REPO).files) == [".gitattributes"]
    fault.times = 0
    push(request_, reporter)
    assert len(owner.repo(REPO).files) == 8


def test_an_edit_made_meanwhile_is_not_lost(
    owner: Hub, request_: PushRequest, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(request_, reporter)
    repo = owner.repo(REPO)
    card = repo.files["README.md"].decode()
    edited = card.replace("*(Nothing yet.", "I was here.\n\n*(Nothing yet.").encode()
    real = publish.Publisher.look
    looks: list[str] = []

    def look(self: publish.Publisher, name: str) -> publish.Remote | None:
        remote = real(self, name)
        looks.append(name)
        if len(looks) == 3:  # after the state that the first commit is based on was read
            repo.commit("main", "edit", {"README.md": Blob(edited, False)}, set())
        return remote

    monkeypatch.setattr(publish.Publisher, "look", look)
    (run_svg := Path(request_.given or "") / "loss.svg").write_text("<svg>new</svg>")
    push(request_, reporter)
    assert repo.files["loss.svg"] == run_svg.read_bytes()
    assert "I was here." in repo.files["README.md"].decode()


def test_a_file_that_changed_since_its_export_is_refused(
    owner: Hub, run: Run, request_: PushRequest, reporter: Reporter
) -> None:
    path = run.gguf / "gemma-think-Q8_0.gguf"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"gemma-think-Q8_0\.gguf has changed since it was exported"):
        push(request_, reporter)
    assert owner.repos == {}


@pytest.mark.parametrize(
    ("token", "repo", "says"),
    [
        (None, REPO, "there is no Hub token on this machine"),
        ("hf_wrongsecret", REPO, "does not accept the token"),
        ("hf_readersecret", REPO, "may only read"),
        ("hf_ownersecret", "someone/else", "could not be created: your token does not allow it"),
        ("hf_ownersecret", "nouser", "is not a repository name"),
        ("hf_ownersecret", "a/b/c", "is not a repository name"),
    ],
)
def test_who_may_not(
    at_hub: Hub, run: Run, reporter: Reporter, monkeypatch: pytest.MonkeyPatch, token: str | None, repo: str, says: str
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=says) as caught:
        push(PushRequest(repo, str(run.path)), reporter)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert at_hub.asked("POST .*/(commit|preupload)/") == []


def test_metadata_that_the_hub_refuses_is_found_before_anything_is_sent(
    owner: Hub, tmp_path: Path, request_: PushRequest, reporter: Reporter
) -> None:
    extra = tmp_path / "extra.md"
    extra.write_text("---\nlicense: my-own\n---\n")
    with pytest.raises(UserError, match=r'refuses the card.*"license" must be one of'):
        push(replace(request_, card_extra=extra), reporter)
    assert owner.uploaded() == 0


def test_a_rehearsal_changes_nothing(owner: Hub, run: Run, request_: PushRequest, reporter: Reporter) -> None:
    (planned,) = rehearse(request_, reporter)
    assert planned.exists is False
    assert {state for _, _, state in planned.files} == {"new"}
    assert {request.method for request in owner.requests} == {"GET"}
    push(request_, reporter)
    (run.path / "loss.svg").write_text("<svg/>")
    (planned,) = rehearse(request_, reporter)
    assert planned.exists is True
    assert [path for path, _, state in planned.files if state != "unchanged"] == ["loss.svg"]
    assert planned.card.encode() == owner.repo(REPO).files["README.md"]
    asked = len(owner.requests)
    (planned,) = rehearse(replace(request_, offline=True), reporter)
    assert planned.exists is None
    assert len(owner.requests) == asked


def test_nothing_of_this_machine_is_published(owner: Hub, run: Run, request_: PushRequest, reporter: Reporter) -> None:
    """Neither paths nor the token."""
    config = run.adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(run.path.parent), "r": 8}))
    push(request_, reporter)
    push(PushRequest("owner/think-lora", str(run.path), adapter=True), reporter)
    here = str(run.path.parent.parent).encode()
    for repo in (REPO, "owner/think-lora"):
        for name, content in owner.repo(repo).files.items():
            assert here not in content, name
            assert b"secret" not in content, name


def test_paths_become_names() -> None:
    given = {"command": ["ftllm", "--out", "/home/me/x/gguf", "--set", "data=/home/me/d.jsonl"], "repo": "org/name"}
    given |= {"url": "https://huggingface.co/org/name", "home": "~/models/a", "windows": "C:\\Users\\me\\a.gguf"}
    cleaned = {"command": ["ftllm", "--out", "gguf", "--set", "data=d.jsonl"], "repo": "org/name"}
    assert public(given) == cleaned | {"url": given["url"], "home": "a", "windows": "a.gguf"}


def ftllm(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ftllm", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ,
    )  # fmt: skip


def test_ctrl_c_and_again(owner: Hub, run: Run) -> None:
    """Stopped while the last file is under way: nothing is published, and only that file is sent again."""
    sizes = sorted(path.stat().st_size for path in run.gguf.glob("*.gguf"))
    largest = max(run.gguf.glob("*.gguf"), key=lambda path: path.stat().st_size)
    fault = Fault(f"PUT /storage/{sha256_file(largest)}", after=5000, stalls=True)
    owner.faults.append(fault)
    command = ("push", REPO, str(run.path))
    with ftllm(*command) as child:
        assert fault.reached.wait(60)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=60)
    fault.release.set()
    assert child.returncode == 130
    assert output == ""
    assert "nothing is published yet" in errors
    assert "Traceback" not in errors
    assert sorted(owner.repo(REPO).files) == [".gitattributes"]
    assert owner.uploaded() == sum(sizes[:-1]) + 5000
    with ftllm(*command) as child:
        output, errors = child.communicate(timeout=60)
    assert (child.returncode, output) == (0, f"{owner.url}/{REPO}\n"), errors
    assert owner.uploaded() == sum(sizes) + 5000
    assert len(owner.repo(REPO).files) == 8


def test_the_command_says_nothing_secret(owner: Hub, run: Run) -> None:
    """Even with --verbose, and when the Hub repeats what it was sent."""
    owner.faults.append(Fault("POST .*/preupload/", status=400, message="bad header: Bearer hf_ownersecret", times=99))
    with ftllm("push", REPO, str(run.path), "--verbose") as child:
        output, errors = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "Bearer hf_***" in errors
    assert "secret" not in output + errors
