"""What is remembered of transformers' files is what transformers finds in them itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftllm import structure

MODELS = "transformers/models"
IMPORT = """
import sys
from ftllm import structure
structure.remember()
import transformers
import transformers.models
from transformers.utils import import_utils
print(type(import_utils.define_import_structure).__name__)
print(sorted(transformers._class_to_module.items()))
print(sorted((name, sorted(needed)) for name, needed in transformers._object_missing_backend.items()))
print(sorted(dir(transformers.models)))
"""


def imported(cache: Path, script: str = IMPORT) -> list[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_transformers_is_the_same_with_and_without(tmp_path: Path) -> None:
    plain = imported(tmp_path, IMPORT.replace("structure.remember()", ""))
    first = imported(tmp_path)
    kept = tmp_path / "ftllm" / "transformers.json"
    written = kept.stat().st_mtime_ns
    second = imported(tmp_path)
    assert (plain[0], first[0], second[0]) == ("_lru_cache_wrapper", "Listing", "Listing")
    assert plain[1:] == first[1:] == second[1:]
    assert len(plain[1]) > 10_000
    assert kept.stat().st_mtime_ns == written  # the second took it as it was


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of two models, one with a class that needs a package; its directory of models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = tmp_path / "site" / MODELS
    (tmp_path / "site" / "transformers-5.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "transformers-5.0.dist-info" / "RECORD").write_text("transformers/__init__.py,,\n")
    for model in ("alpha", "beta"):
        (models / model).mkdir(parents=True)
        (models / model / f"modeling_{model}.py").write_text("")
    return models


class Reading:
    """Transformers' own way, which notes down how often it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []

    def __call__(self, path: Any, prefix: str | None = None) -> structure.Structure:
        self.calls.append((str(path), prefix))
        models = sorted(entry.name for entry in Path(path).iterdir() if entry.is_dir())
        return {frozenset({"torch"}): {f"{model}.modeling_{model}": {model.title()} for model in models}}


def test_models_are_read_once_in_all(installed: Path) -> None:
    for asked in (1, 0):  # by a first process, and by the next
        read = Reading()
        listing = structure.Listing(installed, read)
        assert listing(installed, prefix="models") == {
            frozenset({"torch"}): {
                "models.alpha.modeling_alpha": {"Alpha"},
                "models.beta.modeling_beta": {"Beta"},
            }
        }
        assert listing(str(installed / "__init__.py"))[frozenset({"torch"})]["beta.modeling_beta"] == {"Beta"}
        assert len(read.calls) == asked


def test_what_it_gives_may_be_changed(installed: Path) -> None:
    listing = structure.Listing(installed, Reading())
    listing(installed)[frozenset({"torch"})].clear()
    assert len(listing(installed)[frozenset({"torch"})]) == 2


@pytest.mark.parametrize("change", ["another installation", "a model more", "damage", "nonsense", "no list of files"])
def test_what_changed_is_read_anew(installed: Path, change: str) -> None:
    kept = installed.parents[2] / "cache" / "ftllm" / "transformers.json"
    structure.Listing(installed, Reading())(installed)
    if change == "another installation":
        next(installed.parents[1].glob("*.dist-info/RECORD")).write_text("transformers/__init__.py,,1\n")
    elif change == "a model more":
        (installed / "gamma").mkdir()
    elif change == "damage":
        kept.write_text(kept.read_text()[:-20])
    elif change == "nonsense":
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"structure": [["torch", ["alpha"]]]}))
    else:
        shutil.rmtree(next(installed.parents[1].glob("*.dist-info")))
    read = Reading()
    found = structure.Listing(installed, read)(installed)
    assert len(read.calls) == 1
    assert len(found[frozenset({"torch"})]) == (3 if change == "a model more" else 2)


def test_a_cache_that_cannot_be_written_is_done_without(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert len(structure.Listing(installed, Reading())(installed)[frozenset({"torch"})]) == 2


def test_other_directories_are_none_of_its_business(installed: Path) -> None:
    read = Reading()
    listing = structure.Listing(installed, read)
    (installed / "alpha" / "inner").mkdir()
    assert listing(installed / "alpha") == {frozenset({"torch"}): {"inner.modeling_inner": {"Inner"}}}
    assert read.calls == [(str(installed / "alpha"), None)]
    assert not (installed.parents[2] / "cache").exists()
