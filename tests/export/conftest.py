"""A LoRA with every wrinkle on the nano model, merged by peft, and the files our worker makes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from exact_models import Exact, make_exact, make_shallow
from tiny_models import Tiny, make

from ftllm.export import fetch
from ftllm.export.child import Child, Events
from ftllm.export.verifier import Truth

NANO = Path(__file__).parents[2] / "models" / "nano"
TOKENIZER = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


@pytest.fixture(scope="session")
def nano() -> Path:
    return NANO


@pytest.fixture(scope="session")
def converter() -> fetch.Converter:
    """Upstream's converter, fetched once where it is not in the cache yet."""
    return fetch.ensure()


@pytest.fixture(scope="session")
def tools() -> Path:
    """llama.cpp's own tools, built where they are not there yet (minutes: for slow tests only)."""
    script = Path(__file__).parents[2] / "scripts" / "build_llama_tools"
    return Path(subprocess.run([script], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


@pytest.fixture(scope="session")
def shallow(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano model's first two layers, for what costs by the layer."""
    return make_shallow(nano, tmp_path_factory.mktemp("shallow") / "base")


@pytest.fixture(scope="session")
def exact(shallow: Path, converter: fetch.Converter, tmp_path_factory: pytest.TempPathFactory) -> Exact:
    """An adapter on it whose merge is exact in 16 bits, and upstream's file of the merged model."""
    return make_exact(shallow, converter, tmp_path_factory.mktemp("exact"))


@dataclass(frozen=True)
class Lora:
    """An adapter directory, and the model that peft makes of base and adapter in float32."""

    adapter: Path
    merged: Path
    samples: tuple[tuple[int, ...], ...]
    logits: tuple[Any, ...]  # peft's own, unmerged


@pytest.fixture(scope="session")
def lora(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Lora:
    """rsLoRA with `alpha_pattern` and `rank_pattern`, on attention and MLP."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3407)
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("lora")
    model = AutoModelForCausalLM.from_pretrained(nano, dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        use_rslora=True,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        rank_pattern={"layers.1.mlp.down_proj": 4},
        alpha_pattern={"q_proj": 5},
        task_type="CAUSAL_LM",
    )
    tuned: Any = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapter, merged = place / "adapter", place / "merged"
    tuned.save_pretrained(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(nano))
    samples = ((2, 4, 10, 300, 77, 5), tuple(range(40, 90)))
    with torch.inference_mode():
        logits = tuple(tuned(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in samples)
    tuned.merge_and_unload().save_pretrained(merged)
    for name in TOKENIZER:
        if (nano / name).is_file():
            shutil.copy(nano / name, merged / name)
    shutil.copy(nano / "config.json", merged / "config.json")
    return Lora(adapter, merged, samples, logits)


class Files(dict[str, Path]):
    """Files by type, and the plan they were made by."""

    plan: dict[str, Any]

    @property
    def order(self) -> dict[str, Any]:
        """What the verifier is told of it."""
        renamed = self.plan["renamed"]
        merged = {renamed[name]: module for name, module in self.plan["merged"].items() if renamed[name]}
        return {"merged": merged, "names": self.plan["names"]}


@pytest.fixture(scope="session")
def convert(converter: fetch.Converter) -> Callable[..., Files]:
    """Run the worker process: files by type, without verification and without keys of our own."""

    def run(
        base: Path,
        adapter: Path | None,
        quants: list[str],
        out: Path,
        *,
        importance: Path | None = None,
        overrides: Sequence[tuple[str, int]] = (),
        split: int | None = None,
        **values: Any,
    ) -> Files:
        events = Events()
        job = {
            "converter": str(converter.root),
            "base": str(base),
            "adapter": str(adapter) if adapter else None,
            "name": "tested",
            "files": [{"label": quant, "type": quant, "importance": importance is not None} for quant in quants],
            "overrides": overrides,
            "split": split,
            "values": values,
            "check": True,
        }
        worker = Child("converting", "ftllm.export.worker", job, events)
        try:
            while (event := events.next()[1])["event"] != "plan":
                pass
            shards = {file["label"]: file["shards"] for file in event["files"]}
            names = {
                quant: [f"{quant}.gguf"]
                if count == 1
                else [f"{quant}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
                for quant, count in shards.items()
            }
            paths = Files({quant: out / parts[0] for quant, parts in names.items()})
            paths.plan = event
            everything = {quant: [str(out / name) for name in parts] for quant, parts in names.items()}
            matrix = str(importance) if importance else None
            worker.send({"go": True, "paths": everything, "importance": matrix})
            while events.next()[1]["event"] != "written":
                pass
        finally:
            worker.kill()
        return paths

    return run


@pytest.fixture(scope="session")
def lora_files(lora: Lora, nano: Path, convert: Any, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The nano model with the adapter, as F32 and Q4_K_M."""
    files: Files = convert(nano, lora.adapter, ["F32", "Q4_K_M"], tmp_path_factory.mktemp("files"))
    return files


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A small random Llama, and an adapter for all its linear layers, the output layer too."""
    return make("llama-think", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama_files(llama: Tiny, convert: Any, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """It with the adapter, as F32 and Q4_K_M."""
    files: Files = convert(llama.base, llama.adapter, ["F32", "Q4_K_M"], tmp_path_factory.mktemp("files"))
    return files


@pytest.fixture(scope="session")
def llama_truth(llama: Tiny) -> Truth:
    """What the small Llama with its adapter must predict."""
    return Truth.of(llama.base, llama.adapter)


@pytest.fixture(scope="session")
def truth(lora: Lora, nano: Path) -> Truth:
    """What the nano model with the adapter must predict."""
    return Truth.of(nano, lora.adapter)


def edit_json(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def edited() -> Callable[..., None]:
    return edit_json


@pytest.fixture
def copy_of_nano(nano: Path, tmp_path: Path) -> Path:
    """A copy of the nano model whose files may be changed."""
    return Path(shutil.copytree(nano, tmp_path / "base"))
