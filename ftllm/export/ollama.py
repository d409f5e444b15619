"""Files that Ollama reads: `template` in Go's syntax, `params`, `system`, and a `Modelfile` that holds them all.

A chat template is a program, Ollama's another one. What a template writes around each turn is found out by rendering
chats of marked words; from those strings Ollama's is put together. It is kept only if it gives the template's own text
for other chats too, by what Go's text/template and Ollama (template/template.go there) do with it; else there is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.files import write_text
from ftllm.templates import render_template
from ftllm.thoughts import ThoughtTags, tags_of

FILES = ("template", "params", "system", "Modelfile")
CONTEXT = 8192  # Ollama's own default of 4096 cuts a long thought short
# Keys that upstream's converter takes from generation_config.json, and Ollama's names for them.
SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repeat_penalty",
}  # fmt: skip

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Turns:
    """What stands around the turns.

    Attributes:
        opening: before everything, where no system text with a block of its own begins the chat.
        user, reply, asked: before a user's text; after it, up to the assistant's; the same where the answer is to come.
        after: after an assistant's text.
        system: before and after a system text that has a block of its own; None where it has none.
        joint: between a system text and the first user's, where it becomes part of that.
        default: the system text that the template takes when none is given.
    """

    opening: str
    user: str
    reply: str
    asked: str
    after: str
    system: tuple[str, str] | None = None
    joint: str | None = None
    default: str = ""

    def render(self, messages: Messages) -> str:
        """What Ollama makes of a chat that ends with the user's turn."""
        given = messages[0]["role"] == "system" and self.system is not None
        text, waiting = "" if given else self.opening, ""
        for index, message in enumerate(messages):
            content, last = message["content"], index == len(messages) - 1
            if message["role"] == "system" and self.system is not None:
                text += self.system[0] + content + self.system[1]
            elif message["role"] == "system" and self.joint is not None:
                waiting = content + self.joint
            elif message["role"] == "user":
                text += self.user + waiting + content + (self.asked if last else self.reply)
                waiting = ""
            elif message["role"] == "assistant":
                text += content + ("" if last else self.after)
        return text

    def go(self, tags: ThoughtTags) -> str:
        """The same as a template of Ollama's.

        A thought is written only where an answer is gone on with; that it is named at all tells Ollama that the
        model thinks, and between which tags.
        """
        begin, first, system, end = _literal(self.opening), "", "", ""
        if self.system is not None:
            before, after = map(_literal, self.system)
            system = f'{{{{ if eq .Role "system" }}}}{before}{{{{ .Content }}}}{after}{{{{ else }}}}'
            if begin:
                begin = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{begin}{{{{ end }}}}'
        elif self.joint is not None:
            begin += '{{ $system := "" }}'
            system = '{{ if eq .Role "system" }}{{ $system = .Content }}{{ else }}'
            first = f'{{{{ if $system }}}}{{{{ $system }}}}{_literal(self.joint)}{{{{ $system = "" }}}}{{{{ end }}}}'
        if system:
            end = "{{ end }}"
        opened, closed = _literal(tags.open + "\n"), _literal("\n" + tags.close + "\n\n")
        thought = f"{{{{ if and $last .Thinking }}}}{opened}{{{{ .Thinking }}}}{closed}{{{{ end }}}}"
        return (
            f"{begin}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
            f'{system}{{{{ if eq .Role "user" }}}}{_literal(self.user)}{first}{{{{ .Content }}}}'
            f"{{{{ if $last }}}}{_literal(self.asked)}{{{{ else }}}}{_literal(self.reply)}{{{{ end }}}}"
            f'{{{{ else if eq .Role "assistant" }}}}{thought}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{_literal(self.after)}{{{{ end }}}}{{{{ end }}}}{end}{{{{ end }}}}"
        )


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF's metadata say about its special tokens."""

    bos: str
    eos: str
    adds_bos: bool
    control: frozenset[str]


def turns_of(template: str, vocabulary: Vocabulary) -> Turns:
    """What a chat template writes around the turns.

    Raises:
        UserError: Ollama's templates cannot do what this one does, or it refuses plain chats.
    """
    if "strftime_now" in template:
        raise UserError("its chat template writes the day's date")
    long = _rendered(template, _chat("U1", "A1", "U2", "A2", "U3"), vocabulary)
    start, reply, between, again, once_more, asked = _cut(long, "U1", "A1", "U2", "A2", "U3")
    if (reply, between) != (again, once_more):
        raise UserError("its chat template does not write every turn alike")
    user = _common_end(start, between)
    opening = start.removesuffix(user)
    turns = Turns(opening, user, reply, asked, between.removesuffix(user))
    try:
        with_system = _rendered(template, [_turn("system", "S1"), *_chat("U1")], vocabulary)
        before, rest = _cut(with_system, "S1")
    except UserError:
        before, rest = "", ""  # it takes no system text
    alone = user + "U1" + asked
    if rest.endswith(alone):
        left, right = before, rest.removesuffix(alone)
        own = opening.startswith(left) and opening.endswith(right) and len(opening) > len(left) + len(right)
        default = opening[len(left) : len(opening) - len(right)] if own else ""
        turns = replace(turns, system=(left, right), default=default)
    elif rest.endswith("U1" + asked) and before == opening + user:
        turns = replace(turns, joint=rest.removesuffix("U1" + asked))
    for chat in _trials(system=turns.system is not None or turns.joint is not None):
        if turns.render(chat) != _rendered(template, chat, vocabulary):
            raise UserError("its chat template depends on more than the order of the turns")
    return turns


def describe(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What Ollama needs, from a GGUF's metadata: `template`, `params` and `system`, or `reason` why there is none."""
    params: dict[str, Any] = {
        name: round(metadata[f"general.sampling.{key}"], 4)
        for key, name in SAMPLING.items()
        if f"general.sampling.{key}" in metadata
    }
    longest = int(metadata.get(f"{metadata.get('general.architecture')}.context_length") or CONTEXT)
    params["num_ctx"] = min(CONTEXT, longest)
    template = metadata.get("tokenizer.chat_template")
    if not template:
        return {"params": params, "reason": "it has no chat template"}
    vocabulary = _vocabulary(metadata)
    try:
        turns = turns_of(template, vocabulary)
    except UserError as error:
        return {"params": params, "reason": error.message}
    ending = (turns.after + turns.user).strip()  # what follows an answer
    ends = [token for token in vocabulary.control if ending.startswith(token)]
    if ends:
        params["stop"] = [max(ends, key=len)]
    return {"params": params, "template": turns.go(tags_of(template)), "system": turns.default}


def write(directory: Path, said: Mapping[str, Any], gguf: Path | None, about: str) -> list[Path]:
    """Write the files that there is something for, and remove those of an earlier export that no longer hold.

    Args:
        said: from `describe`.
        gguf: the file a Modelfile starts from; None where there is none in one piece.
        about: a line on what it is.
    """
    contents = dict.fromkeys(FILES, "")
    contents["params"] = json.dumps(said["params"], indent=2) + "\n"
    contents["template"], contents["system"] = said.get("template", ""), said.get("system", "")
    if gguf is not None:
        contents["Modelfile"] = modelfile(said, gguf.name, about)
    written = []
    for name, content in contents.items():
        path = directory / name
        if content:
            write_text(path, content)
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written


def modelfile(said: Mapping[str, Any], gguf: str, about: str) -> str:
    """A Modelfile for `ollama create NAME -f Modelfile`."""
    lines = [f"# {about}", f"FROM ./{gguf}"]
    if template := said.get("template"):
        lines.append(f'TEMPLATE """{template}"""')
    else:
        lines.append(f"# No TEMPLATE: {said['reason']}.")
    if system := said.get("system"):
        lines.append(f'SYSTEM """{system}"""')
    for name, value in said["params"].items():
        lines += [f"PARAMETER {name} {json.dumps(one)}" for one in (value if isinstance(value, list) else [value])]
    return "\n".join(lines) + "\n"


def _rendered(template: str, messages: Messages, vocabulary: Vocabulary) -> str:
    """The prompt's text, without the BOS that llama.cpp adds by itself."""
    text = render_template(
        template, messages, bos_token=vocabulary.bos, eos_token=vocabulary.eos, add_generation_prompt=True
    )
    return text.removeprefix(vocabulary.bos) if vocabulary.adds_bos else text


def _vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    from ftllm.export.checks import CONTROL

    tokens = metadata["tokenizer.ggml.tokens"]

    def text(index: int) -> str:
        token = tokens[index]
        return token if isinstance(token, str) else bytes(token).decode("utf-8", "replace")

    kinds = metadata.get("tokenizer.ggml.token_type") or []
    bos, eos = metadata.get("tokenizer.ggml.bos_token_id"), metadata.get("tokenizer.ggml.eos_token_id")
    control = frozenset(text(index) for index, kind in enumerate(kinds[: len(tokens)]) if kind == CONTROL)
    return Vocabulary(
        text(bos) if bos is not None else "",
        text(eos) if eos is not None else "",
        bool(metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama")),
        control,
    )


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _chat(*contents: str) -> Messages:
    return [_turn(("user", "assistant")[index % 2], content) for index, content in enumerate(contents)]


def _trials(*, system: bool) -> list[Messages]:
    chats = [_chat("Hello"), _chat("a\nb", "c", "d {{ x }}"), _chat("1", "2", "3", "4", "5", "6", "7")]
    spoken = [[_turn("system", "Be brief.\nBe kind."), *chat] for chat in chats]
    return chats + spoken if system else chats


def _cut(text: str, *marks: str) -> list[str]:
    """What stands before, between and after the marks, each of which must be there once."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise UserError("its chat template does not show every turn as it is")
        parts.append(before)
    return [*parts, text]


def _common_end(one: str, other: str) -> str:
    """The longest text that both end with."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _literal(text: str) -> str:
    """Text in a Go template: as it is, or as a constant where it would be read as an action."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or '"""' in text else text
