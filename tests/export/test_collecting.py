"""Importance matrices of our own: what is measured, on which text, and what is made with them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exact_models import gguf_name
from test_export_command import OLLAMA, events, export

from ftllm.export import calibration, heldout, importance, provenance
from ftllm.files import sha256_file
from ftllm.llama.activations import Activations, collect
from ftllm.llama.header import read_header
from ftllm.llama.model import Model
from ftllm.runs import Run


def test_sums_are_those_of_the_inputs_transformers_computes(lora: Any, nano: Path, lora_files: dict[str, Path]) -> None:
    """The inputs of every linear layer, by hooks; llama.cpp keeps its KV cache and its table of GELU in 16 bits.

    That moves columns by some tenths of a percent, and those that are next to nothing by more.
    """
    from ftllm.export.reference import Reference

    truth = Reference(nano, lora.adapter)
    expected: dict[str, Any] = {}
    for name in truth.changed:

        def add(_module: Any, inputs: Any, name: str = name) -> None:
            expected[name] = expected.get(name, 0.0) + inputs[0].double().pow(2).sum((0, 1)).numpy()

        truth.model.get_submodule(name).register_forward_pre_hook(add)
    for ids in lora.samples:  # one at a time: padding would be summed too
        truth.hidden([ids])
    with Model.load(lora_files["F32"], gpu_layers=0) as model:
        found = collect(model, lora.samples)
    assert set(found.sums) == {gguf_name(name) for name in expected}
    for name, sums in expected.items():
        ours = found.sums[gguf_name(name)]
        assert ours.shape == (1, len(sums))
        np.testing.assert_allclose(ours[0], sums, rtol=0.02, atol=1e-4 * sums.mean(), err_msg=name)
        assert found.counts[gguf_name(name)].tolist() == [sum(map(len, lora.samples))]


def test_each_expert_counts_the_tokens_routed_to_it() -> None:
    """Two tokens, two experts of three each: the first token goes to 2 and 0, the second to 2 and 1."""
    found = Activations()
    inputs = np.array([[[[1.0, 2.0]], [[3.0, 4.0]]]], np.float32)  # [1, tokens, 1, columns]
    ids = np.array([[[[2, 0], [2, 1]]]], np.int32)
    weight: Any = SimpleNamespace(ne=[2, 8, 3, 1])
    found._add_routed("blk.0.ffn_up_exps.weight", weight, inputs, ids)
    assert found.sums["blk.0.ffn_up_exps.weight"].tolist() == [[1, 4], [9, 16], [10, 20]]
    assert found.counts["blk.0.ffn_up_exps.weight"].tolist() == [1, 1, 2]


@pytest.mark.slow
def test_a_matrix_is_the_one_llama_imatrix_measures(nano: Path, convert: Any, tools: Path, tmp_path: Path) -> None:
    """On the same chunks; sums differ by what float32 and float64 differ, 5e-5 at most where this was written."""
    model_path = convert(nano, None, ["Q8_0"], tmp_path)["Q8_0"]
    rows = [json.loads(line)["messages"] for line in (nano / "ft.jsonl").read_text().splitlines()[:80]]
    text = "\n\n".join(message["content"] for row in rows for message in row)
    (tmp_path / "text.txt").write_text(text)
    command = [str(tools / "llama-imatrix"), "-m", str(model_path), "-f", str(tmp_path / "text.txt"), "--no-ppl"]
    command += ["-o", str(tmp_path / "theirs.gguf"), "-t", "1", "-fa", "off"]
    subprocess.run(command, check=True, capture_output=True)
    theirs = importance.load(tmp_path / "theirs.gguf")
    with Model.load(model_path, gpu_layers=0) as model:
        assert model.bos_id is not None
        ids = [model.bos_id, *model.encode(text)]
        chunks = [ids[start : start + 512] for start in range(0, len(ids) - 511, 512)]
        found = collect(model, [[model.bos_id, *chunk[1:]] for chunk in chunks])
    assert theirs.chunks == len(chunks) > 5
    assert set(found.sums) == set(theirs.values)
    for name, values in theirs.values.items():
        np.testing.assert_allclose(found.sums[name][0] / found.counts[name], values, rtol=1e-3, err_msg=name)


@pytest.fixture
def trained(tmp_path: Path) -> Run:
    """A run on three conversations, one of which was held out."""
    run = Run(tmp_path / "runs" / "ft-001")
    run.path.mkdir(parents=True)
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
        for ask, answer in [("1 + 1?", "2"), ("2 + 2?", "4"), ("3 + 3?", "6")]
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.held_out.write_text(json.dumps(rows[1]) + "\n")
    entry = {"path": str(data), "use": "data", "sha256": sha256_file(data)}
    run.write_manifest({"status": "finished", "data": [entry], "config": {"max_length": 64, "date": "2001-02-03"}})
    return run


def test_the_text_is_what_was_trained_on_and_not_what_was_held_out(trained: Run, lora_files: dict[str, Path]) -> None:
    said: list[str] = []
    text = calibration.text_of(trained, said.append)
    assert (text.origin, said) == ("what ft-001 was trained on", [])
    with Model.load(lora_files["F32"], vocab_only=True) as model:
        shown = [model.decode_text(row, special=True) for row in calibration.rows_of(text, model)]
        assert len(shown) == 2
        assert all(row.count("<bos>") == 1 for row in shown)
        assert "1 + 1?" in shown[0]
        assert "3 + 3?" in shown[1]
    Path(text.files[0]).write_text("{}\n")
    assert calibration.text_of(trained, said.append).files == (calibration.OWN,)
    assert "data.jsonl is gone or has changed" in said[0]


def test_templates_that_write_the_date_are_told_the_day_of_training(
    trained: Run, nano: Path, convert: Any, tmp_path: Path
) -> None:
    """Else a matrix measured tomorrow would be another one; without a run, it is the same day every day."""
    dated = tmp_path / "dated"
    shutil.copytree(nano, dated)
    template = dated / "chat_template.jinja"
    said = "{{- bos_token -}}{{- strftime_now('%Y-%m-%d') -}}"
    template.write_text(template.read_text().replace("{{- bos_token -}}", said, 1))
    texts = [calibration.text_of(run, lambda _: None) for run in (trained, None)]
    with Model.load(convert(dated, None, ["Q8_0"], tmp_path)["Q8_0"], vocab_only=True) as model:
        for text, day in zip(texts, ("2001-02-03", "2026-01-01"), strict=True):
            rows = calibration.rows_of(calibration.Calibration.of_job(text.job()), model)
            assert all(model.decode_text(row, special=True).startswith(f"<bos>{day}") for row in rows)
            assert text.identity()["today"] == day
    Path(texts[0].files[0]).write_text("{}\n")  # changed: our own text, as on that day
    assert calibration.text_of(trained, lambda _: None).today.isoformat() == "2001-02-03"


def test_our_own_texts_to_measure_and_to_judge_on_share_nothing() -> None:
    measured = {message for item in heldout.conversations(calibration.OWN) for message in item.messages}
    judged = {message for item in heldout.conversations(heldout.OWN) for message in item.messages}
    assert len(measured) > 50
    assert not measured & judged


def test_a_matrix_may_be_the_first_thing_recorded(tmp_path: Path) -> None:
    """Where no other type is asked for, it is there before any file."""
    for name in ("m-imatrix.gguf", "m-IQ2_XS.gguf"):
        (tmp_path / name).touch()
    provenance.record(tmp_path, {"m-imatrix.gguf": {"chunks": 3}, "gone.gguf": {}}, "imatrix")
    assert provenance.read_record(tmp_path) == {}
    provenance.record(tmp_path, {"m-IQ2_XS.gguf": {"bytes": 5}})
    assert provenance.read_record(tmp_path) == {"m-IQ2_XS.gguf": {"bytes": 5}}
    assert provenance.read_record(tmp_path, "imatrix") == {"m-imatrix.gguf": {"chunks": 3}}


def test_types_that_need_a_matrix_get_one(shallow: Path, converter: Any, tmp_path: Path) -> None:
    """Measured once, on the model as Q8_0, which goes; kept beside the files and known again."""
    del converter
    out = tmp_path / "out"
    arguments = (shallow, "--quant", "IQ2_XS,Q4_0", "--out", out, "--verify", "none", "--json")
    done = export(*arguments, place=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = events(done.stdout)[-1]["files"]
    assert (first["type"], first.get("imatrix"), second.get("imatrix")) == ("IQ2_XS", True, None)
    names = ["base-IQ2_XS.gguf", "base-Q4_0.gguf", "base-imatrix.gguf", "export.json"]
    assert {path.name for path in out.iterdir()} == {*names, *OLLAMA}
    record = json.loads((out / "export.json").read_text())
    matrix = importance.load(out / names[2])
    assert record["files"][names[0]]["imatrix"]["sha256"] == sha256_file(matrix.path)
    assert record["files"][names[1]]["imatrix"] is None
    assert record["imatrix"][names[2]]["dataset"] == matrix.dataset == "conversations that come with ftllm"
    assert len(matrix.values) == 14
    header = read_header(out / names[0])
    assert header.metadata["quantize.imatrix.file"] == names[2]
    assert header.metadata["quantize.imatrix.chunks_count"] == matrix.chunks
    before = matrix.path.stat().st_mtime_ns
    again = export(*arguments, place=tmp_path)
    assert all(file["kept"] for file in events(again.stdout)[-1]["files"])
    assert matrix.path.stat().st_mtime_ns == before


@pytest.mark.slow
def test_best_keeps_what_measures_better(nano: Path, converter: Any, tmp_path: Path) -> None:
    """Each type that can be made either way is made both ways; the file that is kept is one of those two exports'."""
    del converter
    quants = ["Q2_K", "Q4_K_S", "IQ2_S", "Q8_0"]
    files, records = {}, {}
    for mode in ("best", "auto", "none"):
        out = tmp_path / mode
        wanted = ",".join(quants if mode == "best" else quants[:2])
        done = export(nano, "--quant", wanted, "--imatrix", mode, "--verify", "full", "--out", out, place=tmp_path)
        assert done.returncode == 0, done.stderr
        records[mode] = json.loads((out / "export.json").read_text())["files"]
        files[mode] = {name: (out / name).read_bytes() for name in records[mode]}
        assert not list(out.glob("*.partial"))
    assert set(records["best"]) == {f"nano-{quant}.gguf" for quant in quants}
    for quant in quants[:2]:
        name = f"nano-{quant}.gguf"
        entry = records["best"][name]
        with_, without = (records[mode][name]["verification"]["kl_divergence"] for mode in ("auto", "none"))
        assert entry["kl_divergence_with_imatrix"] == pytest.approx(with_, rel=1e-3)
        assert entry["kl_divergence_without_imatrix"] == pytest.approx(without, rel=1e-3)
        assert bool(entry["imatrix"]) == (with_ < without)
        assert files["best"][name] == files["auto" if with_ < without else "none"][name]
    assert records["best"]["nano-IQ2_S.gguf"]["imatrix"]
    assert records["best"]["nano-Q8_0.gguf"]["imatrix"] is None
    again = export(
        nano, "--quant", ",".join(quants), "--imatrix", "best", "--out", tmp_path / "best", "--json", place=tmp_path
    )
    assert all(file["kept"] for file in events(again.stdout)[-1]["files"])
