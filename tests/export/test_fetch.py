"""The converter's cache: hashes, hostile archives, two processes at once, no network."""

from __future__ import annotations

import io
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftllm.errors import UserError, WorkError
from ftllm.export import fetch
from ftllm.files import sha256_file

PREFIX = "llama_cpp_python-9.9.9/vendor/llama.cpp"
KEPT = {
    "conversion/__init__.py": b"",
    "conversion/base.py": b"class ModelBase: pass\n",
    "gguf-py/gguf/__init__.py": b"",
    "convert_hf_to_gguf.py": b"print()\n",
    "LICENSE": b"MIT",
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source distribution with the converter, other files, and members that try to get out."""
    path = tmp_path / "llama_cpp_python-9.9.9.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {**KEPT, "src/llama.cpp": b"int main;", "conversion/notes.bin": b"x"}.items():
            add(tar, f"{PREFIX}/{name}", data)
        add(tar, f"{PREFIX}/conversion/../../../../../escaped.py", b"evil")
        add(tar, "/tmp/escaped_absolutely.py", b"evil")
        link = tarfile.TarInfo(f"{PREFIX}/conversion/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    monkeypatch.setitem(fetch.TESTED, "9.9.9", sha256_file(path))
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_only_the_converter_is_extracted(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "9.9.9"
    fetch.install(archive, "9.9.9", root)
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert found == {*KEPT, fetch.MANIFEST}
    assert fetch.intact(root)
    assert not list(tmp_path.rglob("*escaped*"))
    assert [path.name for path in root.parent.iterdir()] == ["9.9.9"]


def test_a_changed_missing_or_added_file_is_noticed_and_repaired(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "9.9.9"
    for damage in (
        lambda: (root / "conversion" / "base.py").write_text("import os\n"),
        lambda: (root / "conversion" / "base.py").unlink(),
        lambda: (root / "conversion" / "more.py").write_text(""),
        lambda: (root / fetch.MANIFEST).write_text("{"),
    ):
        fetch.install(archive, "9.9.9", root)
        assert fetch.intact(root)
        damage()
        assert not fetch.intact(root)
    fetch.install(archive, "9.9.9", root)
    assert fetch.intact(root)


def test_two_at_once(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "9.9.9"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fetch.install(archive, "9.9.9", root), range(8)))
    assert fetch.intact(root)
    assert [path.name for path in root.parent.iterdir()] == ["9.9.9"]


def test_another_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    with archive.open("ab") as file:
        file.write(b"x")
    with pytest.raises(WorkError, match="has SHA-256"):
        fetch.install(archive, "9.9.9", tmp_path / "cache" / "9.9.9")
    assert not (tmp_path / "cache" / "9.9.9").exists()


def test_an_archive_without_the_converter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "llama_cpp_python-9.9.9.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, f"{PREFIX}/README.md", b"")
    monkeypatch.setitem(fetch.TESTED, "9.9.9", sha256_file(path))
    with pytest.raises(WorkError, match="does not hold"):
        fetch.install(path, "9.9.9", tmp_path / "cache" / "9.9.9")


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "cache_root", lambda: tmp_path)
    with pytest.raises(UserError) as caught:
        fetch.ensure(offline=True)
    assert "doctor --fetch" in caught.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="this is offline"):
        fetch.ensure()


def test_an_untested_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(fetch, "runtime_version", lambda: "0.0.1")
    with pytest.raises(UserError, match=r"0\.0\.1 is not a version"):
        fetch.ensure()


def test_a_checkout_may_be_given(converter: fetch.Converter, tmp_path: Path) -> None:
    assert fetch.ensure(converter.root).root == converter.root
    with pytest.raises(UserError, match=r"not a llama\.cpp checkout"):
        fetch.ensure(tmp_path)


def test_a_checkout_is_known_by_its_files(converter: fetch.Converter, tmp_path: Path) -> None:
    """What was exported with it counts as made from other inputs once it has changed."""
    assert converter.identity == converter.version
    for part in ("conversion", "gguf-py"):
        shutil.copytree(converter.root / part, tmp_path / part)
    first = fetch.ensure(tmp_path).identity
    assert fetch.ensure(tmp_path).identity == first != converter.version
    with (tmp_path / "conversion" / "gemma.py").open("a") as file:
        file.write("# changed\n")
    assert fetch.ensure(tmp_path).identity != first


def test_the_real_one_is_intact(converter: fetch.Converter) -> None:
    assert (converter.root / "conversion" / "gemma.py").is_file()
    assert fetch.intact(converter.root)
