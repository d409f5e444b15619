"""What an export starts from: runs, adapters, models, and the base that belongs to them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ftllm.errors import UserError
from ftllm.export import checkpoint, source
from ftllm.files import sha256_file
from ftllm.runs import Run


def make_run(root: Path, name: str, base: Path, started: str = "2026-01-01", **files: str) -> Run:
    """A finished run on `base` with a small adapter."""
    run = Run(root / name)
    run.adapter.mkdir(parents=True)
    (run.adapter / "adapter_config.json").write_text(json.dumps({"r": 1, "base_model_name_or_path": str(base)}))
    save_file({"x": np.zeros(1, np.float32)}, run.adapter / "adapter_model.safetensors")
    hashes = files or {path.name: sha256_file(path) for path in checkpoint.base_files(base)}
    recorded = {"path": str(base), "files": hashes}
    run.write_manifest({"status": "finished", "started": started, "base": recorded})
    return run


def test_the_latest_run_is_taken_when_none_is_named(nano: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "older", nano, "2026-01-01")
    make_run(tmp_path, "newer", nano, "2026-01-02")
    found = source.resolve(None, runs_root=tmp_path)
    assert found.run is not None
    assert found.name == "nano-newer"
    assert found.base == nano
    assert found.out == tmp_path / "newer" / "gguf"
    assert source.resolve("older", runs_root=tmp_path).name == "nano-older"


def test_an_adapter_in_a_run_is_that_run(nano: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine", nano)
    found = source.resolve(str(run.adapter))
    assert found.run is not None
    assert found.expected


def test_an_adapter_alone_and_a_model(nano: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine", nano)
    alone = shutil.copytree(run.adapter, tmp_path / "my adapter")
    found = source.resolve(str(alone))
    assert (found.name, found.run, found.out) == ("nano-my-adapter", None, Path("gguf"))
    model = source.resolve(str(nano))
    assert (model.name, model.adapter, model.base) == ("nano", None, nano)
    with pytest.raises(UserError, match="--base has no meaning"):
        source.resolve(str(nano), base=str(nano))


def test_the_wrong_base_is_refused(nano: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "right", nano)
    assert "model.safetensors" in source.check_base(source.resolve("right", runs_root=tmp_path))
    make_run(tmp_path, "wrong", nano, **{"model.safetensors": "0" * 64})
    with pytest.raises(UserError, match=r"not the base this adapter was trained on: model.safetensors"):
        source.check_base(source.resolve("wrong", runs_root=tmp_path))


def test_a_base_in_the_hubs_cache_is_called_as_its_repository(nano: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--lab--small-it" / "snapshots" / "c0ffee"
    shutil.copytree(nano, snapshot)
    found = source.resolve(str(snapshot))
    assert (found.base_name, found.name) == ("small-it", "small-it")
    run = make_run(tmp_path, "run", snapshot)
    assert source.resolve(str(run.path)).name == "small-it-run"
    base = {**run.read_manifest()["base"], "repo": "lab/small-it", "path": str(tmp_path / "emptied")}
    run.write_manifest({**run.read_manifest(), "base": base})
    with pytest.raises(UserError, match="lab/small-it is not on this machine"):  # rather than: not at .../emptied
        source.resolve(str(run.path), offline=True)


def test_an_adapter_that_was_copied_still_knows_its_base(nano: Path, copy_of_nano: Path, tmp_path: Path) -> None:
    """`ftllm train` writes the base's hashes beside the adapter; a base of the same shape is refused by them."""
    alone = Path(shutil.copytree(make_run(tmp_path, "run", nano).adapter, tmp_path / "alone"))
    hashes = {path.name: sha256_file(path) for path in checkpoint.base_files(nano)}
    (alone / "training.json").write_text(json.dumps({"base": {"name": "nano", "files": hashes}}))
    assert source.check_base(source.resolve(str(alone), base=str(nano)))
    weights = (copy_of_nano / "model.safetensors").read_bytes()
    (copy_of_nano / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match=r"this adapter was trained on: model\.safetensors differs"):
        source.check_base(source.resolve(str(alone), base=str(copy_of_nano)))


def test_a_foreign_adapter_on_another_base_is_doubted(nano: Path, copy_of_nano: Path, tmp_path: Path) -> None:
    """No hashes tell; its own account of its base, and the tokenizer beside it, do."""
    alone = Path(shutil.copytree(make_run(tmp_path, "run", nano).adapter, tmp_path / "alone"))
    assert source.resolve(str(alone)).doubts == ()
    (doubt,) = source.resolve(str(alone), base=str(copy_of_nano)).doubts
    assert "was trained on nano by its own account, and is merged into base" in doubt
    tokenizer = json.loads((nano / "tokenizer.json").read_text())
    (alone / "tokenizer.json").write_text(json.dumps(tokenizer, indent=4))  # other bytes, the same tokens
    assert source.resolve(str(alone)).doubts == ()
    tokenizer["added_tokens"].append({"id": 2048, "content": "<new>"})
    (alone / "tokenizer.json").write_text(json.dumps(tokenizer))
    (doubt,) = source.resolve(str(alone)).doubts
    assert "has other tokens than nano's" in doubt


def test_weights_in_other_shards_are_doubted(nano: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", nano, **{"model-00001-of-00002.safetensors": "0" * 64})
    (doubt,) = source.resolve("run", runs_root=tmp_path).doubts
    assert doubt.endswith("their hashes cannot be compared")
    run.held_out.touch()
    (doubt,) = source.resolve("run", runs_root=tmp_path).doubts
    assert doubt.endswith("--verify full compares what training measured")


def test_a_four_bit_mirror_is_mapped_to_its_original(nano: Path, tmp_path: Path) -> None:
    adapter = make_run(tmp_path, "run", nano).adapter
    alone = shutil.copytree(adapter, tmp_path / "alone")
    config = {"r": 1, "base_model_name_or_path": "unsloth/gemma-3-27b-it-unsloth-bnb-4bit"}
    (alone / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="unsloth/gemma-3-27b-it is not on this machine"):
        source.resolve(str(alone), offline=True)
    found = source.resolve(str(alone), base=str(nano))
    assert found.four_bit


def test_what_is_no_source_is_refused(nano: Path, tmp_path: Path) -> None:
    del nano
    with pytest.raises(UserError, match="no run or directory called nothing"):
        source.resolve("nothing", runs_root=tmp_path)
    with pytest.raises(UserError, match="no finished run"):
        source.resolve(None, runs_root=tmp_path)
    with pytest.raises(UserError, match="not a run, an adapter or a model"):
        source.resolve(str(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not a directory"):
        source.resolve(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("adapter_config.json", b"\xff\xfe", "is not JSON, nor text at all"),
        ("adapter_config.json", b"[]", "is not a JSON object"),
        ("training.json", b'{"base": "nano"}', "training.json does not describe a base"),
        ("training.json", b"", "training.json is not JSON"),
        ("tokenizer.json", b'{"added_tokens": [4]}', "tokenizer.json is not a tokenizer"),
    ],
)
def test_damage_beside_an_adapter_is_told(name: str, content: bytes, says: str, nano: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(make_run(tmp_path, "run", nano).adapter, tmp_path / "alone"))
    (alone / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        source.resolve(str(alone))
    assert refused.value.hint


def remove(name: str) -> Callable[[Path], Any]:
    return lambda base: (base / name).unlink()


def only_pickles(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(b"")


def lose_a_shard(base: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def cut_a_shard(base: Path) -> None:
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").write_bytes(data[:-100])


def no_tokenizer(base: Path) -> None:
    for path in base.glob("tokenizer*"):
        path.unlink()


def four_bit(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))


def in_shards(base: Path) -> dict[str, str]:
    """Cut the weights into two shards with an index; the index."""
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    index = {}
    for number in range(2):
        name = f"model-{number + 1:05d}-of-00002.safetensors"
        part = {tensor: weights[tensor] for tensor in sorted(weights)[number::2]}
        save_file(part, base / name)
        index |= dict.fromkeys(part, name)
    write_index(base, index)
    return index


def write_index(base: Path, index: Any) -> None:
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def forget_a_shard(base: Path) -> None:
    index = in_shards(base)
    write_index(base, {name: shard for name, shard in index.items() if "00001-of" in shard})


def promise_a_tensor(base: Path) -> None:
    write_index(base, {**in_shards(base), "model.extra.weight": "model-00002-of-00002.safetensors"})


def forget_a_tensor(base: Path) -> None:
    write_index(base, dict(list(in_shards(base).items())[1:]))


def lose_the_index(base: Path) -> None:
    in_shards(base)
    (base / "model.safetensors.index.json").unlink()


def cut_one_of_two(base: Path) -> None:
    in_shards(base)
    shard = base / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def binary_index(base: Path) -> None:
    in_shards(base)
    (base / "model.safetensors.index.json").write_bytes(bytes(range(128, 256)))


def list_for_an_index(base: Path) -> None:
    in_shards(base)
    write_index(base, ["model-00001-of-00002.safetensors"])


def header(data: bytes) -> Callable[[Path], Any]:
    """Weights that are a header and nothing more."""
    return lambda base: (base / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)


def setting(**values: Any) -> Callable[[Path], Any]:
    """Another value in config.json."""

    def change(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (forget_a_shard, r"index\.json does not name model-00002-of-00002\.safetensors"),
        (promise_a_tensor, r"model-00002-of-00002\.safetensors lacks model\.extra\.weight"),
        (forget_a_tensor, r"index\.json does not name \S+ of model-0000"),
        (lose_the_index, r"has shards, but no model\.safetensors\.index\.json"),
        (cut_one_of_two, r"model-00002-of-00002\.safetensors is cut short"),
        (binary_index, r"index\.json is not JSON, nor text at all"),
        (list_for_an_index, "is not an index of weights"),
        (header(b'["a"]'), "its header does not describe tensors"),
        (header(b'{"a": {"dtype": "F32"}}'), "its header does not describe tensors"),
        (header(b"{" * 20), "its header is not JSON"),
        (setting(num_hidden_layers=9), "has no weights for layer 6 of 9"),
        (setting(hidden_size=512), r"embed_tokens\.weight is \[2048, 256\] where config\.json says \[2048, 512\]"),
        (setting(vocab_size=4096), r"where config\.json says \[4096, 256\]"),
        (lambda base: (base / "generation_config.json").write_bytes(b"\xff\xfe"), "generation_config.json is not JSON"),
        (lambda base: (base / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json is not a JSON object"),
        (remove("model.safetensors"), "no safetensors weights"),
        (only_pickles, "no safetensors weights"),
        (cut_a_shard, "cut short"),
        (lose_a_shard, "lacks model-00001-of-00002"),
        (remove("tokenizer.model"), "no tokenizer.model"),
        (no_tokenizer, "no tokenizer"),
        (four_bit, "bitsandbytes"),
    ],
)
def test_an_incomplete_base_is_refused_early(damage: Callable[[Path], Any], says: str, copy_of_nano: Path) -> None:
    damage(copy_of_nano)
    with pytest.raises(UserError, match=says) as refused:
        source.resolve(str(copy_of_nano))
    assert (refused.value.exit_code, bool(refused.value.hint)) == (2, True)


def test_a_checkpoint_in_shards_is_whole(copy_of_nano: Path) -> None:
    index = in_shards(copy_of_nano)
    found = source.resolve(str(copy_of_nano))
    names = {path.name for path in checkpoint.base_files(found.base)}
    assert names >= set(index.values())
    assert checkpoint.extent(found.base).parameters == 5_250_048


def test_what_ends_in_the_metadata_counts_among_the_inputs(nano: Path, copy_of_nano: Path, tmp_path: Path) -> None:
    """Sampling settings may be changed after training; they make another file of the same base."""
    run = make_run(tmp_path, "run", nano, **{path.name: sha256_file(path) for path in checkpoint.base_files(nano)})
    settings = copy_of_nano / "generation_config.json"
    settings.write_text('{"temperature": 0.3}')
    found = source.resolve(str(run.path), base=str(copy_of_nano))
    assert source.check_base(found)[settings.name] == sha256_file(settings)
    tokens = copy_of_nano / "special_tokens_map.json"
    tokens.write_text("{}")
    with pytest.raises(UserError, match=r"special_tokens_map\.json differs"):
        source.check_base(found)


def test_another_commit_of_the_base_is_doubted(nano: Path, tmp_path: Path) -> None:
    """Where the adapter says which one it was trained on, and the base lies in the Hub's cache."""
    commit, other = "1" * 40, "2" * 40
    for revision in (commit, other):
        shutil.copytree(nano, tmp_path / "models--lab--small-it" / "snapshots" / revision)
    alone = Path(shutil.copytree(make_run(tmp_path, "run", nano).adapter, tmp_path / "alone"))
    named = {"r": 1, "base_model_name_or_path": "lab/small-it", "revision": commit}
    (alone / "adapter_config.json").write_text(json.dumps(named))
    snapshots = tmp_path / "models--lab--small-it" / "snapshots"
    assert source.resolve(str(alone), base=str(snapshots / commit)).doubts == ()
    (doubt,) = source.resolve(str(alone), base=str(snapshots / other)).doubts
    assert f"was trained on commit {commit} of small-it" in doubt
