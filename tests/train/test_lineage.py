"""Stage after stage: a run that goes on from another's adapter, with it or beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainings import Trainer, adapter_hashes, impatient, without_timings
from typer.testing import CliRunner

from ftllm.cli.main import build
from ftllm.errors import UserError
from ftllm.hub.show import lineage
from ftllm.hub.training_card import stages_before
from ftllm.progress import Reporter
from ftllm.runs import Run
from ftllm.train.config import PRESETS, resolve
from ftllm.train.interrupt import Interrupted
from ftllm.train.lineage import with_parent
from ftllm.train.settings import Setting
from ftllm.train.stage import resume

STEPS = {"eval": "25%", "max_steps": 6}


@pytest.fixture(scope="module")
def stage_two(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return Trainer(tiny, data, tmp_path_factory.mktemp("runs"))("first", lora__rank=4, **STEPS).run


@pytest.fixture
def first(stage_two: Run, trained: Trainer) -> Run:
    """A finished run among those of the test, which may do to it what it likes."""
    return Run(shutil.copytree(stage_two.path, trained.runs / "first").resolve())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(2, 60)[None]).logits
    return found


def base_of(run: Run) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(run.read_manifest()["base"]["path"], dtype=torch.float32)


def settings(**values: Any) -> dict[str, Setting]:
    return {key: Setting(value, f"--{key}") for key, value in values.items()}


def test_the_same_adapter_is_trained_on(trained: Trainer, first: Run) -> None:
    second = trained("second", from_run=str(first.path), stage="sft", lora__rank=4, **STEPS)
    before, after = first.read_manifest(), second.run.read_manifest()
    assert second.eval_before == before["results"]["eval_nll"]
    assert second.eval_after is not None
    assert second.eval_after < before["results"]["eval_nll"] - 0.05
    assert json.loads((second.run.adapter / "adapter_config.json").read_text())["r"] == 4
    recorded = after["from"]
    assert (recorded["run"], recorded["path"], recorded["adapter"]) == ("first", str(first.path), "same")
    assert recorded["sha256"] == adapter_hashes(first)["adapter_model.safetensors"]
    assert (after["config"]["stage"], after["config"]["preset"]) == ("sft", "sft")
    assert "It goes on from `first` (stage ft, 6 steps) and trains its adapter on." in (
        second.run.path / "REPORT.md"
    ).read_text()  # fmt: skip


def test_a_new_adapter_beside_a_merged_one_is_what_peft_makes_of_both(trained: Trainer, first: Run) -> None:
    """The run's adapter on the base: the base with the first merged in by peft, and the second alone on top."""
    from peft import LoraConfig, PeftModel, get_peft_model

    result = trained(
        "second", from_run=str(first.path), from_adapter="merge", lora__alpha=5.0, weight_decay=0.5, **STEPS
    )
    merged = PeftModel.from_pretrained(base_of(first), first.adapter).merge_and_unload()
    # Before a step it is the base with the first merged in.
    assert result.eval_before == pytest.approx(first.read_manifest()["results"]["eval_nll"], rel=1e-6)
    both = load_file(result.run.adapter / "adapter_model.safetensors")
    config = json.loads((result.run.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"] / config["r"]) == (12, 5 / 8)
    assert config["base_model_name_or_path"] == first.read_manifest()["base"]["path"]
    theirs = load_file(first.adapter / "adapter_model.safetensors")
    own = get_peft_model(merged, LoraConfig(r=8, lora_alpha=5, target_modules=config["target_modules"]))
    state = own.state_dict()
    for name, tensor in both.items():
        axis = 0 if "lora_A" in name else 1
        kept, new = tensor.split([4, 8], dim=axis)
        # Decayed by nothing, moved by nothing: the first's own numbers, times 4/(5/8) where the scale differs.
        assert torch.equal(kept, theirs[name] * (6.4 if axis else 1.0))
        state[name.replace(".weight", ".default.weight")].copy_(new)
        assert new.abs().max() > 0
    expected = logits(own)
    found = logits(PeftModel.from_pretrained(base_of(first), result.run.adapter))
    assert torch.allclose(found, expected, atol=1e-5)
    manifest = result.run.read_manifest()
    assert manifest["trainable_parameters"] == 8 * sum(
        tensor.shape["lora_A" in name] for name, tensor in theirs.items()
    )  # fmt: skip
    # And a third goes on from the stack.
    third = trained("third", from_run=str(result.run.path), from_adapter="merge", lora__targets=["mlp"], max_steps=2)
    stacked = load_file(third.run.adapter / "adapter_model.safetensors")
    assert {tensor.shape["lora_A" not in name] for name, tensor in stacked.items()} == {20}
    attention = [tensor for name, tensor in stacked.items() if "q_proj.lora_B" in name]
    assert all(tensor[:, 12:].abs().max() == 0 for tensor in attention)
    assert [link["name"] for link in lineage(third.run, trained.runs)] == ["third", "second", "first", "tiny"]
    # What a card says of it.
    assert stages_before(third.run.read_manifest()) == (
        "`ft` (6 steps), whose adapter of rank 12 is kept and stacked with the new one; "
        "`ft` (6 steps), whose adapter of rank 4 is kept and stacked with the new one"
    )


def test_a_dry_run_says_what_it_would_go_on_from(trained: Trainer, first: Run) -> None:
    data = trained.given["data"]
    assert isinstance(data, list)
    command = [
        "train",
        "--stage",
        "sft",
        "--from",
        first.name,
        "--runs",
        str(trained.runs),
        "--data",
        data[0],
        "--dry-run",
    ]
    ended = CliRunner().invoke(build(command), command)
    assert "from      first, whose adapter of rank 4 is trained on\n" in ended.output
    assert "rank: 4" in ended.output


def test_an_interrupted_stage_goes_on_to_the_same_adapter(trained: Trainer, first: Run) -> None:
    given = {"from_run": str(first.path), "from_adapter": "merge", "lora__rank": 2, **STEPS}
    whole = trained("whole", **given)
    with pytest.raises(Interrupted):
        trained("cut", impatient(3), **given)
    result = resume(Run(trained.runs / "cut"), Reporter(quiet=True))
    assert adapter_hashes(result.run) == adapter_hashes(whole.run)
    assert without_timings(result.run) == without_timings(whole.run)
    assert whole.eval_before is not None


def test_what_cannot_be_gone_on_from_is_one_line(trained: Trainer, first: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run nowhere to go on from"):
        trained("a", from_run="nowhere")
    with pytest.raises(UserError, match=r"lora\.rank is 8, and first's adapter, .* has 4") as caught:
        trained("a", from_run=str(first.path))
    assert "from_adapter=merge" in caught.value.hint
    with pytest.raises(UserError, match=r"lora\.dropout would drop from the merged adapter too"):
        trained("a", from_run=str(first.path), from_adapter="merge", lora__dropout=0.1)
    with pytest.raises(Interrupted):
        trained("cut", impatient(2))
    with pytest.raises(UserError, match=r"cut has not finished its training \(it is interrupted\)"):
        trained("a", from_run=str(trained.runs / "cut"))
    other = tmp_path / "other"
    shutil.copytree(trained.given["model"], other)  # type: ignore[arg-type]
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"first was trained on .*, and .*other is another model: model.safetensors"):
        trained("a", model=str(other), from_run=str(first.path), lora__rank=4)
    (first.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="is no adapter that training wrote"):
        trained("a", from_run=str(first.path), lora__rank=4)
    assert not (trained.runs / "a").exists()


def test_a_parent_decides_what_is_not_given(trained: Trainer, first: Run) -> None:
    """`--stage sft --from RUN` alone: its base, its adapter's shape, the preset of that stage."""
    given = [{}, settings(from_run="first", stage="sft", data=["x"]), settings(seed=5)]
    config = resolve(with_parent(given, trained.runs))
    assert config.model == first.read_manifest()["base"]["path"]
    assert (config.lora.rank, config.stage, config.preset, config.noise.unit) == (4, "sft", "sft", "none")
    assert config.from_run == str(first.path)
    merging = resolve(with_parent([*given, settings(from_adapter="merge")], trained.runs))
    assert merging.lora.rank == 8


def test_a_stage_has_its_preset_and_a_preset_its_stage() -> None:
    needed = settings(model="m", data=["d"])
    for given, stage, preset in [
        ([], "ft", "ft"),
        ([settings(stage="sft")], "sft", "sft"),
        ([settings(preset="sft")], "sft", "sft"),
        ([settings(preset="seed"), settings(stage="ft")], "ft", "seed"),
        ([settings(preset="seed"), settings(stage="sft")], "sft", "sft"),
        ([settings(stage="sft"), settings(preset="seed")], "ft", "seed"),
    ]:
        config = resolve([needed, *given])
        assert (config.stage, config.preset) == (stage, preset)
        assert config.noise.unit == PRESETS[preset]["noise.unit"]
    with pytest.raises(UserError, match="stage sft and preset ft exclude each other"):
        resolve([needed | settings(stage="sft", preset="ft")])


def test_models_show_prints_the_chain(trained: Trainer, first: Run) -> None:
    second = trained("second", from_run=str(first.path), stage="sft", lora__rank=4, max_steps=2).run
    command = ["models", "show", "second", "--runs", str(trained.runs)]
    output = CliRunner().invoke(build(command), command).output
    lines = output.splitlines()
    assert lines[0] == "second  stage sft, preset sft, finished, 2 steps, on small.jsonl"
    assert lines[1].startswith("└ from first  stage ft, preset ft, finished, its adapter trained on, 6 steps, on small")
    assert lines[2] == f"  └ from tiny  base model, {first.read_manifest()['base']['path']}"
    # What is gone is told from what its successor recorded; what was trained again is said to be.
    first.path.rename(trained.runs / "elsewhere")
    links = lineage(second, trained.runs)
    assert [(link["name"], link.get("status")) for link in links[:2]] == [("second", "finished"), ("first", "not here")]
    assert (links[1]["steps"], links[1]["preset"]) == (6, "ft")
    trained("first", max_steps=1)
    assert lineage(second, trained.runs)[1]["changed"]
