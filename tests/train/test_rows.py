"""Rows: what is trained in which epoch, what is held out, and batches of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ftllm.errors import UserError
from ftllm.render import IGNORED, Row, render
from ftllm.train.config import TrainConfig, resolve
from ftllm.train.corpus import load_corpus
from ftllm.train.data import Rows, collate, pack
from ftllm.train.settings import Setting
from ftllm.vocabulary import DirectoryVocabulary, from_directory

NANO = Path(__file__).parents[2] / "models" / "nano"


@pytest.fixture(scope="module")
def vocabulary() -> DirectoryVocabulary:
    return from_directory(NANO)


def configured(data: Path, **values: object) -> TrainConfig:
    given = {"model": str(NANO), "data": [str(data)], **{key.replace("__", "."): v for key, v in values.items()}}
    return resolve([{key: Setting(value, "test") for key, value in given.items()}])


def rows_of(vocabulary: DirectoryVocabulary, config: TrainConfig) -> Rows:
    return Rows(config, load_corpus(config), vocabulary)


def user_text(row: Row, vocabulary: DirectoryVocabulary) -> str:
    text: str = vocabulary.tokenizer.decode(list(row.input_ids))
    return text.split("<start_of_turn>user\n")[1].split("<end_of_turn>")[0]


def test_a_fresh_permutation_every_epoch_is_a_pure_function(data: Path, vocabulary: DirectoryVocabulary) -> None:
    config = configured(data)
    rows, again = rows_of(vocabulary, config), rows_of(vocabulary, config)
    plan = rows.plan()
    assert len(plan.units) == 12
    epochs = [[rows.draw(unit, epoch) for unit in plan.units] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    # Drawn in another order, by another object: the same.
    assert [again.draw(unit, 2) for unit in reversed(again.plan().units)] == epochs[2][::-1]
    for drawn in epochs[1:]:
        for before, after in zip(epochs[0], drawn, strict=True):
            assert sorted(user_text(before, vocabulary).split()) == sorted(user_text(after, vocabulary).split())
            assert [label for label in before.labels if label != IGNORED] == [
                label for label in after.labels if label != IGNORED
            ]


def test_static_noise_has_one_permutation_and_another_seed_another(data: Path, vocabulary: DirectoryVocabulary) -> None:
    rows = rows_of(vocabulary, configured(data, preset="seed"))
    units = rows.plan().units
    assert [rows.draw(unit, 0) for unit in units] == [rows.draw(unit, 5) for unit in units]
    other = rows_of(vocabulary, configured(data, preset="seed", seed=1))
    assert [rows.draw(unit, 0) for unit in units] != [other.draw(unit, 0) for unit in units]


def test_sft_trains_the_data_as_it_is(data: Path, vocabulary: DirectoryVocabulary) -> None:
    config = configured(data, preset="sft")
    rows = rows_of(vocabulary, config)
    plan = rows.plan()
    clean = [row for item in rows.corpus.training for row in render(item.conversation, vocabulary)]
    assert [rows.draw(unit, 7) for unit in plan.units] == clean
    assert (plan.moved, plan.units_of_text, plan.share_moved) == (0, 0, 0.0)
    assert plan.tokens == sum(len(row.input_ids) for row in clean)
    assert plan.trained == sum(row.trained for row in clean)
    assert plan.longest == max(len(row.input_ids) for row in clean)


def test_share_moved_counts_words(data: Path, vocabulary: DirectoryVocabulary) -> None:
    rows = rows_of(vocabulary, configured(data))
    plan = rows.plan()
    moved = total = 0
    for item in rows.corpus.training:
        before = item.conversation.messages[0].content.split()
        after = rows.conversation(item, 0).messages[0].content.split()
        moved += sum(a != b for a, b in zip(before, after, strict=True))
        total += len(before)
    assert (plan.moved, plan.units_of_text) == (moved, total)
    assert 0.4 < plan.share_moved < 0.7  # 14 words, 9 chosen: (9 - 1) / 14 on average


def test_curriculum_goes_from_its_first_to_its_second_ratio(data: Path, vocabulary: DirectoryVocabulary) -> None:
    rows = rows_of(vocabulary, configured(data, epochs=3, noise__ratio=[0.0, 1.0], noise__range="training"))
    item = rows.corpus.training[0]
    assert rows.conversation(item, 0) == item.conversation
    assert rows.conversation(item, 1) != item.conversation
    assert rows.conversation(item, 2) != rows.conversation(item, 1)


def test_held_out_share_is_disjoint_clean_and_repeatable(data: Path, vocabulary: DirectoryVocabulary) -> None:
    config = configured(data, eval="25%")
    corpus = load_corpus(config)
    assert (len(corpus.training), len(corpus.held_out)) == (9, 3)
    trained = {item.conversation.source for item in corpus.training}
    assert trained.isdisjoint(item.source for item in corpus.held_out)
    assert load_corpus(config) == corpus
    assert load_corpus(configured(data, eval="25%", seed=9)).held_out != corpus.held_out
    held = Rows(config, corpus, vocabulary).held_out()
    assert held == [row for item in corpus.held_out for row in render(item, vocabulary)]
    # A row keeps its index in the data, so that holding others out does not change its noise.
    assert {item.index for item in corpus.training} < set(range(12))


def test_held_out_file_is_recorded(data: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text(data.read_text().splitlines()[0] + "\n")
    corpus = load_corpus(configured(data, eval=str(held)))
    assert (len(corpus.training), len(corpus.held_out)) == (12, 1)
    assert [(file["use"], file["conversations"]) for file in corpus.files] == [("data", 12), ("eval", 1)]
    assert corpus.files[1]["path"] == str(held)


def test_nothing_left_to_train_on(data: Path) -> None:
    with pytest.raises(UserError, match=r"holding out 96% of 12 conversations leaves none"):
        load_corpus(configured(data, eval="96%"))


def test_too_long_rows_are_dropped_or_cut_and_counted(data: Path, vocabulary: DirectoryVocabulary) -> None:
    longest = rows_of(vocabulary, configured(data, preset="sft")).plan().longest
    dropping = rows_of(vocabulary, configured(data, preset="sft", max_length=longest - 1)).plan()
    assert dropping.dropped
    assert all(tokens == longest for _, tokens in dropping.dropped)
    assert len(dropping.units) + len(dropping.dropped) == 12
    assert dropping.dropped[0][0].startswith(f"{data}:")
    cutting = rows_of(vocabulary, configured(data, preset="sft", max_length=longest - 1, too_long="cut"))
    plan = cutting.plan()
    assert len(plan.cut) == len(dropping.dropped)
    assert max(len(cutting.draw(unit, 0).input_ids) for unit in plan.units) == longest - 1


def test_a_longer_permutation_falls_back_to_the_one_that_fits(data: Path, vocabulary: DirectoryVocabulary) -> None:
    """At the tightest length the first epoch allows, no later epoch loses an end of a turn."""
    longest = rows_of(vocabulary, configured(data)).plan().longest
    rows = rows_of(vocabulary, configured(data, max_length=longest))
    for unit in rows.plan().units:
        for epoch in range(8):
            row = rows.draw(unit, epoch)
            assert row.cut == 0
            assert vocabulary.is_eog([label for label in row.labels if label != IGNORED][-1])


def test_all_rows_masked_or_too_long(data: Path, vocabulary: DirectoryVocabulary) -> None:
    with pytest.raises(UserError, match=r"small.jsonl:1: no token of any row would be trained"):
        rows_of(vocabulary, configured(data, max_length=10, too_long="cut")).plan()
    with pytest.raises(UserError, match=r"no row fits into max_length 10: all 12 are longer"):
        rows_of(vocabulary, configured(data, max_length=10)).plan()


def test_a_row_that_cannot_be_rendered_is_named(tmp_path: Path, vocabulary: DirectoryVocabulary) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    with pytest.raises(UserError, match=rf"{path}:1: no assistant turn"):
        rows_of(vocabulary, configured(path)).plan()


def test_collate_pads_on_the_right() -> None:
    batch = collate([{"input_ids": (1, 2, 3), "labels": (-100, 2, 3)}, {"input_ids": (4,), "labels": (4,)}], pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_pack_restarts_positions_and_predicts_nothing_across_rows() -> None:
    batch = pack([{"input_ids": (1, 2, 3), "labels": (1, 2, 3)}, {"input_ids": (4, 5), "labels": (4, 5)}])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


def test_packed_and_padded_batches_have_the_same_loss_and_gradients(
    tiny: Path, data: Path, vocabulary: DirectoryVocabulary
) -> None:
    from transformers import AutoModelForCausalLM

    from ftllm.train.data import keeps_rows_apart

    rows = rows_of(vocabulary, configured(data, loss="full"))
    drawn = [rows.draw(unit, 0) for unit in rows.plan().units[:4]]
    given = [{"input_ids": row.input_ids, "labels": row.labels} for row in drawn]
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    assert keeps_rows_apart(model, drawn)
    results = []
    for batch in (collate(given, pad_id=0), pack(given)):
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        results.append((loss.item(), model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-6)


def test_a_model_that_mixes_rows_is_seen(data: Path, vocabulary: DirectoryVocabulary) -> None:
    from ftllm.train.data import keeps_rows_apart

    class Mixing(torch.nn.Module):
        """Logits are a running sum over the whole batch's tokens, whatever the positions say."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(2048, 8)

        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.embedding(input_ids).cumsum(1))

    rows = rows_of(vocabulary, configured(data))
    assert not keeps_rows_apart(Mixing(), [rows.draw(unit, 0) for unit in rows.plan().units[:2]])
