"""The check of GPUs, as far as a machine without one can tell: its plan, its calls, its models and its table."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (SCRIPTS / "bench", SCRIPTS):
        monkeypatch.syspath_prepend(place)


@pytest.fixture
def check() -> Any:
    import gpu_check

    return gpu_check


@pytest.fixture
def toy(tmp_path: Path) -> Any:
    import gpu_plan

    return gpu_plan.Check(tmp_path / "scratch", gpu_plan.TOY, 8, 64, None, gpu=False)


installed = pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed")


@installed
def test_without_a_gpu_it_says_what_it_would_do_and_checks_its_calls(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--dry-run", "--shapes", "1B", "27B", "--scratch", tmp_path]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1] == "every call fits what is installed"
    assert any(line.startswith("make     Gemma 3 27B, random, 54.9 GB of ") for line in lines)
    assert sum(line.startswith("train    ") and "--preset seed" in line for line in lines) == 4
    assert any("load_in_4bit=True" in line and line.startswith("call  FastModel.from_pretrained(") for line in lines)
    (configured,) = [line for line in lines if line.startswith("build    cmake -S")]
    assert "-DGGML_CUDA=ON" in configured
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real" in configured
    assert list(tmp_path.iterdir()) == []


@installed
def test_a_call_that_does_not_fit_is_told(
    toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_plan

    from ftllm.train import unsloth

    given = unsloth.adapting
    monkeypatch.setattr(unsloth, "adapting", lambda config: given(config) | {"finetune_hearing_layers": False})
    python = [sys.executable, "-m", "ftllm"]
    monkeypatch.setattr(type(toy), "bench", lambda *_: [*python, "bench", "MODEL.gguf", "--lenght", "512"])
    monkeypatch.setattr(
        type(toy), "train", lambda *_: [*python, "train", "--model", "m", "--data", "d", "--set", "samples=few"]
    )
    found = gpu_plan.unfit(toy)
    assert found[0] == "unsloth.models.vision.FastBaseModel.get_peft_model has no argument finetune_hearing_layers"
    assert found[1].startswith("ftllm bench MODEL.gguf --lenght 512: No such option: --lenght")
    assert 'samples is "few": it must be a whole number' in found[2]
    capsys.readouterr()


@pytest.mark.parametrize("size", ["1B", "4B"])
def test_its_models_load_whole_and_their_language_layers_are_adapted(size: str, tmp_path: Path) -> None:
    """The shapes with fewer, narrower layers: every name is one that transformers finds, none is missing."""
    import gemma3
    import torch
    from transformers import AutoModelForCausalLM

    from ftllm.train.base import find
    from ftllm.train.layers import lora_targets

    small = replace(gemma3.SHAPES[size], hidden=64, inner=64, layers=2, heads=2, key_heads=1, head=16)
    config = gemma3.configuration(small, vocabulary=512)
    if "vision_config" in config:
        config["vision_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                                    "num_attention_heads": 2}  # fmt: skip
    directory = tmp_path / size
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    gemma3.write_weights(directory, limit=100_000)
    (directory / "tokenizer.model").touch()
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    model, said = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    loss = model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
    assert 5 < loss < 8  # about ln(512)
    targets = lora_targets(model, ["attention", "mlp"])
    assert "vision" not in (targets if isinstance(targets, str) else " ".join(targets))
    assert find(str(directory)).parameters() == sum(parameter.numel() for parameter in model.parameters())


def test_the_real_shapes_have_the_sizes_they_are_named_for() -> None:
    import gemma3

    sizes = {name: gemma3.size(shape) / 2e9 for name, shape in gemma3.SHAPES.items()}
    assert sizes == pytest.approx({"1B": 1.0, "4B": 4.3, "12B": 12.2, "27B": 27.4}, rel=5e-3)


ARM = {"tokens_per_second": 1000.0, "peak_memory_gib": 5.1, "estimated_gib": 5.5, "drawing_share": 0.004,
       "trainable_parameters": 10, "losses": [12.0, 11.0, 10.0, 10.0], "grad_norms": [1.0, 1.0, 1.0, 1.0]}  # fmt: skip
MACHINE = {"gpu": "H100", "at": "2026-11-25T10:00:00", "cuda": "13.0", "versions": {"torch": "2.13.0"}}
FINE = {
    "machine": MACHINE,
    "1B unsloth": ARM | {"building": True},
    "1B hf": ARM | {"losses": [12.0, 11.0, 10.1, 10.0]},
    "build": {"offload": True},
    "export": {"files": [], "verified": True, "seconds": 20.0},
    "speed": {"engine": 99.0, "llama_bench": 100.0, "ratio": 0.99, "rounds": 3},
}


def test_the_table_has_what_was_measured_and_what_is_missing() -> None:
    import gpu_report

    text = gpu_report.table(FINE)
    assert "| 1B | unsloth | 1000.0 * | 5.1 | 5.5 | 0.40% | 0.99% |" in text
    assert "llama-bench 100.0 (ratio 0.990, 3 rounds)" in text
    assert "Wrong" not in text
    cut_short = {"failed": "TooLong: ended after 90 s", "losses": [12.0], "tokens_per_second": 70.0}
    text = gpu_report.table(FINE | {"4B unsloth": cut_short, "4B hf": {"left_out": "20 s were left"}})
    assert "| 4B | unsloth | 70.0 | - | - | - | - |" in text
    assert "- 4B unsloth: TooLong: ended after 90 s" in text
    assert "- 4B hf: 20 s were left" in text


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("1B unsloth", {"losses": [12.0, 11.0, 10.0, 10.3]}, "1B: the losses of both backends differ by 3.00%"),
        ("1B unsloth", {"losses": [12.0] * 4}, "1B unsloth: the loss did not fall"),
        ("1B unsloth", {"grad_norms": [1.2]}, "1B: the first gradients' norms differ"),
        ("1B unsloth", {"trainable_parameters": 9}, "1B: the backends train different numbers of parameters: [9, 10]"),
        ("build", {"offload": False}, "build: this llama.cpp puts no layer on the GPU"),
        ("export", {"verified": False}, "export: not verified"),
        ("speed", {"ratio": 0.97}, "speed: 0.97 of llama-bench"),
    ],
)
def test_what_is_not_as_wanted_is_told(name: str, changed: dict[str, Any], says: str) -> None:
    import gpu_report

    assert gpu_report.judge(FINE) == []
    found = gpu_report.judge(FINE | {name: {**FINE[name], **changed}})  # type: ignore[dict-item]
    assert found[0].startswith(says)


class Steps:
    """In the place of the long steps: how many were made, and which fails."""

    def __init__(self, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.failing = ""
        for name in ("train", "built", "export", "speed"):
            monkeypatch.setattr(check.Work, name, self.step(name))
        monkeypatch.setattr(check.Work, "start_build", lambda work: work.check.scratch.mkdir(exist_ok=True))
        monkeypatch.setattr(check.Work, "tidy", lambda *_: None)

    def step(self, kind: str) -> Any:
        def do(_work: Any, *arm: str) -> dict[str, Any]:
            self.made.append(" ".join(arm) or kind)
            if self.made[-1] == self.failing:
                raise RuntimeError("it broke")
            return {"verified": True, "seconds": 1.0} if kind == "export" else {}

        return do


def test_it_goes_on_with_what_is_missing(
    check: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(check, monkeypatch)
    toy.scratch.mkdir()
    steps.failing = "export"
    assert not check.Work(toy, check.Clock(), tmp_path / "out")()
    assert steps.made == ["toy unsloth", "toy hf", "built", "export"]
    (written,) = (tmp_path / "out").glob("gpu-*.json")
    results = json.loads(written.read_text())
    assert results["export"] == {"failed": "RuntimeError: it broke"}
    assert results["speed"] == {"left_out": "it needs the build and the export"}
    steps.made, steps.failing = [], ""
    assert check.Work(toy, check.Clock(), tmp_path / "out")()
    assert steps.made == ["built", "export", "speed"]
    steps.made = []
    monkeypatch.setattr(check, "machine", lambda _: {"gpu": None, "at": "2026-11-25", "versions": {"torch": "1.0"}})
    assert check.Work(toy, check.Clock(), tmp_path / "out")()
    assert len(steps.made) == 5  # with other libraries, nothing is as it was
    capsys.readouterr()


def test_what_does_not_fit_into_the_time_is_left_out(
    check: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_plan

    steps = Steps(check, monkeypatch)
    monkeypatch.setitem(gpu_plan.NEEDED, "toy", 100.0)
    toy.scratch.mkdir()
    work = check.Work(toy, check.Clock(time.time() + 60), tmp_path / "out")
    assert not work()
    assert steps.made == ["built"]
    assert work.results["toy hf"]["left_out"].endswith("and it needs 100")
    assert "- toy hf: 4" in next((tmp_path / "out").glob("gpu-*.md")).read_text()
    capsys.readouterr()


def test_a_command_that_overruns_is_ended(check: Any, toy: Any, tmp_path: Path) -> None:
    work = check.Work(toy, check.Clock(), tmp_path)
    began = time.monotonic()
    with pytest.raises(check.TooLong, match="ended after 1 s"):
        work.run([sys.executable, "-c", "import time; time.sleep(60)"], limit=1)
    assert time.monotonic() - began < 20
    with pytest.raises(RuntimeError, match="ended with 3: said so"):
        work.run([sys.executable, "-c", "import sys; sys.stderr.write('said so'); sys.exit(3)"])


def test_a_wheel_is_cut_and_still_lists_its_files(tmp_path: Path) -> None:
    import gpu_bundle

    wheel = tmp_path / "a-1-py3-none-any.whl"
    files = {"bitsandbytes/libbitsandbytes_cuda130.so": b"1", "bitsandbytes/libbitsandbytes_cuda128.so": b"22",
             "bitsandbytes/libbitsandbytes_rocm72.so": b"3", "bitsandbytes/libbitsandbytes_cpu.so": b"4",
             "studio/frontend/app.js": b"5", "a-1.dist-info/METADATA": b"Name: a"}  # fmt: skip
    gpu_bundle.write_wheel(wheel, files)
    gpu_bundle.cut(wheel, lambda name: gpu_bundle.kept(name, "130"))
    with zipfile.ZipFile(wheel) as cut:
        assert sorted(cut.namelist()) == [
            "a-1.dist-info/METADATA", "a-1.dist-info/RECORD", "bitsandbytes/libbitsandbytes_cpu.so",
            "bitsandbytes/libbitsandbytes_cuda130.so",
        ]  # fmt: skip
        listed = cut.read("a-1.dist-info/RECORD").decode().splitlines()
    # base64 of the SHA-256 of "1"
    assert listed[0] == ("bitsandbytes/libbitsandbytes_cuda130.so,sha256=a4ayc_80_OGda4BO_1o_V0etpOqiLx1JwB5S3beHW0s,1")
    assert listed[-1] == "a-1.dist-info/RECORD,,"


def test_the_sources_keep_their_names_however_long(tmp_path: Path) -> None:
    import gpu_bundle

    long = "ggml/src/ggml-cuda/template-instances/fattn-mma-f16-instance-ncols1_16-ncols2_16.cu"
    wanted = [long, "CMakeLists.txt", "tools/llama-bench/main.cpp", "src/llama.cpp", "conversion/base.py"]
    unwanted = ["docs/a.md", "tools/ui/app.js", "ggml/src/ggml-vulkan/a.cpp", "models/ggml-vocab.gguf"]
    with tarfile.open(tmp_path / "sdist.tar.gz", "w:gz") as sdist:
        for name in (*wanted, *unwanted):
            member = tarfile.TarInfo(f"llama_cpp_python-1.2.3/vendor/llama.cpp/{name}")
            member.size = len(name)
            sdist.addfile(member, io.BytesIO(name.encode()))
    with tarfile.open(tmp_path / "sdist.tar.gz") as sdist:
        gpu_bundle.sources(sdist, "1.2.3", tmp_path / "cut.tar.xz")
    with tarfile.open(tmp_path / "cut.tar.xz") as cut:
        assert {member.name for member in cut} == {f"llama.cpp/{name}" for name in wanted}


def test_cublas_may_come_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_plan

    toolkit, wheels = tmp_path / "cuda", tmp_path / "site-packages"
    monkeypatch.syspath_prepend(wheels)
    assert gpu_plan.cublas(toolkit) == []
    for file in ("include/cublas_v2.h", "lib/libcublas.so.13", "lib/libcublasLt.so.13"):
        path = wheels / "nvidia" / "cu13" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    libraries = wheels / "nvidia" / "cu13" / "lib"
    assert gpu_plan.cublas(toolkit) == [
        f"-DCUDA_cublas_LIBRARY={libraries}/libcublas.so.13",
        f"-DCUDA_cublasLt_LIBRARY={libraries}/libcublasLt.so.13",
        f"-DCMAKE_CUDA_FLAGS=-isystem {wheels}/nvidia/cu13/include",
    ]
    (toolkit / "include").mkdir(parents=True)
    (toolkit / "include" / "cublas_v2.h").touch()
    assert gpu_plan.cublas(toolkit) == []


@installed
@pytest.mark.slow
def test_the_rehearsal(tmp_path: Path) -> None:
    """Every step for real, on the CPU, with a model of toy size."""
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--rehearse", "--scratch", tmp_path, "--out", tmp_path / "out"]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (written,) = (tmp_path / "out").glob("gpu-*.json")
    results = json.loads(written.read_text())
    assert len(results["toy unsloth"]["losses"]) == 8
    assert results["export"]["verified"] is True
    assert results["speed"]["rounds"] == 3
