"""What Ollama reads beside a GGUF: templates in Go's syntax, parameters, Modelfiles."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from real_tokenizers import source_files

from ftllm.errors import UserError
from ftllm.export import ollama
from ftllm.export.checks import CONTROL
from ftllm.templates import render_template
from ftllm.thoughts import tags_of

PLAIN = ollama.Vocabulary("<bos>", "<eos>", True, frozenset())
KNOWN = [
    "google-gemma-2-2b-it", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B",
    "meta-llama-Llama-3.1-8B-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "microsoft-Phi-3.5-mini-instruct",
    "HuggingFaceTB-SmolLM3-3B", "GLM-4.6", "unsloth-mistral-Devstral-Small-2507",
]  # fmt: skip


def chats_of(turns: ollama.Turns) -> list[ollama.Messages]:
    return ollama._trials(system=turns.system is not None or turns.joint is not None)


def template_of(name: str, nano: Path) -> str:
    path = nano / "chat_template.jinja" if name == "nano" else source_files() / "templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8")


def test_the_template_of_gemma_by_hand(nano: Path) -> None:
    """Written out as a person would, system text in the first user turn, no BOS: Ollama adds it."""
    turns = ollama.turns_of(template_of("nano", nano), PLAIN)
    assert turns.go(tags_of("")) == (
        '{{ $system := "" }}{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}'
        '{{ if eq .Role "system" }}{{ $system = .Content }}{{ else }}'
        '{{ if eq .Role "user" }}<start_of_turn>user\n'
        '{{ if $system }}{{ $system }}\n\n{{ $system = "" }}{{ end }}{{ .Content }}'
        "{{ if $last }}<end_of_turn>\n<start_of_turn>model\n{{ else }}<end_of_turn>\n<start_of_turn>model\n{{ end }}"
        '{{ else if eq .Role "assistant" }}'
        "{{ if and $last .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}"
        "{{ .Content }}{{ if not $last }}<end_of_turn>\n{{ end }}{{ end }}{{ end }}{{ end }}"
    )
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert turns.render(chat) == (
        "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_default_system_text_is_found() -> None:
    turns = ollama.turns_of(template_of("Qwen-Qwen2.5-7B-Instruct", Path()), PLAIN)
    assert turns.default == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    asked = turns.render([{"role": "user", "content": "Hi"}])
    assert asked == turns.render([{"role": "system", "content": turns.default}, {"role": "user", "content": "Hi"}])
    assert asked.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("meta-llama-Llama-3.2-3B-Instruct", "the day's date"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "more than the order of the turns"),
        ("fireworks-ai-llama-3-firefunction-v2", "'functions' is undefined"),
    ],
)
def test_what_cannot_be_said_in_a_template_of_ollama_is_left_out(name: str, says: str, tmp_path: Path) -> None:
    metadata = {"tokenizer.chat_template": template_of(name, Path()), "tokenizer.ggml.tokens": ["<bos>"]}
    said = ollama.describe(metadata)
    assert says in said["reason"]
    assert "template" not in said
    (tmp_path / "template").write_text("of an earlier export")
    written = ollama.write(tmp_path, said, tmp_path / "m.gguf", "a model")
    assert sorted(path.name for path in written) == ["Modelfile", "params"]
    assert not (tmp_path / "template").exists()
    assert "# No TEMPLATE: " in (tmp_path / "Modelfile").read_text()


def test_the_files_by_hand(tmp_path: Path) -> None:
    """A small ChatML model with sampling settings of its own."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    metadata = {
        "general.architecture": "qwen3",
        "general.sampling.temp": 0.6000000238418579,
        "general.sampling.top_k": 20,
        "qwen3.context_length": 40960,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", b"<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1, CONTROL, CONTROL],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": template,
    }
    said = ollama.describe(metadata)
    ollama.write(tmp_path, said, tmp_path / "m-Q4_K_M.gguf", "m, by hand")
    params = json.loads((tmp_path / "params").read_text())
    assert params == {"temperature": 0.6, "top_k": 20, "num_ctx": 8192, "stop": ["<|im_end|>"]}
    assert not (tmp_path / "system").exists()
    assert (tmp_path / "Modelfile").read_text() == (
        "# m, by hand\nFROM ./m-Q4_K_M.gguf\n"
        f'TEMPLATE """{(tmp_path / "template").read_text()}"""\n'
        'PARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER num_ctx 8192\nPARAMETER stop "<|im_end|>"\n'
    )


@pytest.mark.parametrize("name", ["nano", *KNOWN])
def test_what_is_written_around_the_turns_gives_the_template_s_own_text(name: str, nano: Path) -> None:
    template = template_of(name, nano)
    turns = ollama.turns_of(template, PLAIN)
    for chat in chats_of(turns):
        own = render_template(template, chat, bos_token="<bos>", eos_token="<eos>", add_generation_prompt=True)
        assert turns.render(chat) == own.removeprefix("<bos>")


GO = """
package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content, Thinking string }

type chat struct {
	Template string
	Messages []message
}

func main() {
	var chats []chat
	if err := json.NewDecoder(os.Stdin).Decode(&chats); err != nil {
		panic(err)
	}
	for _, one := range chats {
		parsed := template.Must(template.New("").Parse(one.Template))
		if err := parsed.Execute(os.Stdout, map[string]any{"Messages": one.Messages}); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("\\x00")
	}
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go, whose text/template Ollama uses")
def test_go_s_own_templates_give_the_template_s_own_text(nano: Path, tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO)
    given, expected = [], []
    stems = [path.stem for path in sorted((source_files() / "templates").glob("*.jinja"))]
    for name in ["nano", *stems]:
        template = template_of(name, nano)
        try:
            turns = ollama.turns_of(template, PLAIN)
        except UserError:
            continue
        for chat in chats_of(turns):
            messages = [{"Role": message["role"], "Content": message["content"]} for message in chat]
            given.append({"Template": turns.go(tags_of(template)), "Messages": messages})
            own = render_template(template, chat, bos_token="<bos>", eos_token="<eos>", add_generation_prompt=True)
            expected.append(own.removeprefix("<bos>"))
    assert len(expected) > 250
    done = subprocess.run(
        ["go", "run", "main.go"], cwd=tmp_path, input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\0")[:-1] == expected
