"""The local Hub behaves as the real client expects, in what the other tests rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import Fault, Hub
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

TOKEN = "hf_ownersecret"
BIG = bytes(range(256)) * 4000

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(autouse=True)
def _no_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.mark.parametrize("part_size", [2**40, 300_000])
def test_a_folder_goes_up_and_comes_down(hub: Hub, api: HfApi, tmp_path: Path, part_size: int) -> None:
    hub.part_size = part_size
    folder = tmp_path / "up"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# a\n")
    (folder / "a.gguf").write_bytes(BIG)
    api.create_repo("owner/a", private=True)
    api.upload_folder(repo_id="owner/a", folder_path=folder)
    assert hub.repo("owner/a").private
    assert hub.repo("owner/a").files["a.gguf"] == BIG
    assert hub.uploaded() == len(BIG)
    api.upload_folder(repo_id="owner/a", folder_path=folder)
    assert hub.uploaded() == len(BIG)
    down = snapshot_download("owner/a", endpoint=hub.url, token=TOKEN, cache_dir=tmp_path / "cache")
    assert (Path(down) / "a.gguf").read_bytes() == BIG
    assert api.model_info("owner/a").card_data.license == "mit"


def test_a_dataset_comes_down(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/data", {"train.jsonl": b"{}\n"}, type="dataset")
    place = {"repo_type": "dataset", "endpoint": hub.url, "cache_dir": tmp_path}
    path = Path(snapshot_download("org/data", **place))  # type: ignore[arg-type]
    assert (path / "train.jsonl").read_bytes() == b"{}\n"
    assert path.name == hub.repo("org/data", "dataset").branches["main"]


def test_errors(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    hub.add("other/gated", {"a.gguf": b"x"}, gated=True)
    hub.add("other/private", private=True)
    hub.add("owner/mine")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("owner/none")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("other/private")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("owner/mine", revision="v2")
    with pytest.raises(GatedRepoError):
        hf_hub_download("other/gated", "a.gguf", endpoint=hub.url, token=TOKEN, cache_dir=tmp_path)
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("owner/mine", "b", endpoint=hub.url, token=TOKEN, cache_dir=tmp_path)
    for token, status in ((TOKEN, 403), ("hf_readersecret", 403), ("hf_wrong", 401)):
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_repo("other/new", token=token)
        assert caught.value.response.status_code == status
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("owner/mine")
    assert caught.value.response.status_code == 409
    stale = hub.repo("owner/mine").branches["main"]
    api.create_commit("owner/mine", [CommitOperationAdd("a", b"1")], commit_message="a", parent_commit=stale)
    late = [CommitOperationAdd("b", b"1")]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("owner/mine", late, commit_message="b", parent_commit=stale)
    readme = CommitOperationAdd("README.md", b"---\nlicense: mine\n---\n")
    with pytest.raises(ValueError, match="license"):
        api.create_commit("owner/mine", [readme], commit_message="card")


def test_a_cut_download_goes_on_where_it_was(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.add("org/a", {"a.gguf": BIG})
    hub.faults += [Fault("GET /download/", after=500_000), Fault("HEAD .*resolve", status=503)]
    path = hf_hub_download("org/a", "a.gguf", endpoint=hub.url, cache_dir=tmp_path, token=False)
    assert Path(path).read_bytes() == BIG
    ranges = [request.headers.get("range") for request in hub.asked("GET /download")]
    assert ranges == [None, "bytes=500000-"]


def test_a_cut_upload_is_sent_again(hub: Hub, api: HfApi) -> None:
    hub.part_size = 300_000
    hub.add("owner/a")
    hub.faults += [Fault("PUT /storage/.*/3", after=1000), Fault("PUT /storage/.*/2", status=500)]
    api.create_commit("owner/a", [CommitOperationAdd("a.gguf", BIG)], commit_message="a")
    assert hub.repo("owner/a").files["a.gguf"] == BIG
    assert len(hub.asked("PUT /storage")) == 6  # four parts, two of them twice
