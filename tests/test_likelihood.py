"""The likelihood equals what transformers' own loss says, row by row."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from ftllm.errors import UserError
from ftllm.likelihood import CHUNK, Likelihood, targets, torch_likelihood
from ftllm.render import IGNORED, Row

VOCABULARY = 64


def rows(count: int = 5, longest: int = 40) -> list[Row]:
    rng = random.Random(0)
    made = []
    for number in range(count):
        ids = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(3, longest)))
        labels = tuple(token if rng.random() < 0.6 else IGNORED for token in ids)
        made.append(Row(ids, labels, f"rows.jsonl:{number + 1}"))
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.5,
    )
    return Gemma3ForCausalLM(config).float()


def loss_of_transformers(model: Any, row: Row) -> float:
    """Summed nats, from the mean that the model computes itself when it is given labels."""
    import torch

    with torch.no_grad():
        loss = model.eval()(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
    return float(loss) * row.trained


def test_equals_transformers_loss(model: Any) -> None:
    found = torch_likelihood(model, rows())
    assert [tokens for _, tokens in found.per_row] == [row.trained for row in rows()]
    expected = [loss_of_transformers(model, row) for row in rows()]
    assert [nats for nats, _ in found.per_row] == pytest.approx(expected, rel=1e-5)
    assert found.total == pytest.approx(sum(expected), rel=1e-5)
    assert found.per_token == pytest.approx(sum(expected) / sum(row.trained for row in rows()), rel=1e-5)


def test_long_rows_are_read_once_and_scored_in_chunks(model: Any) -> None:
    ids = tuple(i * 7 % VOCABULARY for i in range(500))
    (row,) = [Row(ids, ids, "long:1")]
    expected = loss_of_transformers(model, row)
    scored: list[int] = []
    layers: list[int] = []
    hooks = [
        model.get_output_embeddings().register_forward_hook(lambda *seen: scored.append(seen[2].shape[1])),
        model.model.layers[0].register_forward_hook(lambda *_: layers.append(1)),
    ]
    forward = model.model.forward
    assert torch_likelihood(model, [row]).total == pytest.approx(expected, rel=1e-5)
    for hook in hooks:
        hook.remove()
    assert scored == [CHUNK, 499 - CHUNK]
    assert layers == [1]
    assert model.model.forward == forward


def test_an_indifferent_model_scores_the_logarithm_of_its_vocabulary(model: Any) -> None:
    import copy

    import torch

    flat = copy.deepcopy(model)
    with torch.no_grad():
        flat.get_output_embeddings().weight.zero_()
    assert torch_likelihood(flat, rows()).per_token == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_a_model_that_computes_all_logits(model: Any) -> None:
    """Not every architecture takes `logits_to_keep`."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def get_input_embeddings(self) -> Any:
            return self.inner.get_input_embeddings()

        def forward(self, input_ids: Any, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    expected = torch_likelihood(model, rows()).per_row
    found = torch_likelihood(Plain(), rows()).per_row
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=1e-6)


def test_a_model_under_training_is_scored_without_dropout_and_left_training(model: Any) -> None:
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    adapted.train()
    first, second = torch_likelihood(adapted, rows()), torch_likelihood(adapted, rows())
    assert first == second
    assert first.total != pytest.approx(torch_likelihood(model, rows()).total, rel=1e-3)
    assert adapted.training


def test_first_position_and_unlabelled_rows_do_not_count(model: Any) -> None:
    assert targets(Row((5, 6, 7), (5, IGNORED, 7), "a:1")) == [(1, 7)]
    empty = torch_likelihood(model, [Row((5, 6), (IGNORED, IGNORED), "a:1")])
    assert empty == Likelihood(0.0, 0, ((0.0, 0),))
    assert math.isnan(empty.per_token)


def test_every_row_is_reported(model: Any) -> None:
    seen: list[int] = []
    torch_likelihood(model, rows(), on_row=seen.append)
    assert seen == [0, 1, 2, 3, 4]


def test_ids_beyond_the_model_are_refused(model: Any) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:9: token 64 is beyond the model's 64 embeddings"):
        torch_likelihood(model, [Row((1, 64), (IGNORED, 64), "a.jsonl:9")])
