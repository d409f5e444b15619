"""Work spread over processes: what it gives, what it raises, and that nothing hangs."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ftllm.errors import UserError, WorkError
from ftllm.train import spread as module
from ftllm.train.config import resolve
from ftllm.train.corpus import load_corpus
from ftllm.train.data import Rows
from ftllm.train.settings import Setting
from ftllm.train.spread import spread
from ftllm.vocabulary import from_directory


def rows_of(data: Path, model: Path) -> Rows:
    given = {"model": str(model), "data": [str(data)], "max_length": 60, "bad_rows": "drop", "noise.unit": "token"}
    config = resolve([{key: Setting(value, "test") for key, value in given.items()}])
    return Rows(config, load_corpus(config), from_directory(model))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 10)
    monkeypatch.setattr(module, "CHUNK", 4)


def squared(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def refused_at_20(number: int) -> int:
    if number == 20:
        raise UserError("row 20", "mend it")
    return number


def killed_at_20(number: int) -> int:
    if number == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_in_order_and_by_others() -> None:
    found = list(spread(squared, range(50), 2))
    assert [square for square, _ in found] == [number * number for number in range(50)]
    assert os.getpid() not in {process for _, process in found}
    assert {process for _, process in spread(squared, range(9), 2)} == {os.getpid()}
    assert {process for _, process in spread(squared, range(50), 1)} == {os.getpid()}


def test_a_refusal_keeps_its_hint() -> None:
    with pytest.raises(UserError, match="row 20") as caught:
        list(spread(refused_at_20, range(50), 2))
    assert (caught.value.hint, caught.value.exit_code) == ("mend it", 2)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_killed_process_is_failed_work() -> None:
    with pytest.raises(WorkError, match="was killed"):
        list(spread(killed_at_20, range(50), 2))


def test_the_plan_is_the_same(data: Path, tiny: Path) -> None:
    rows = rows_of(data, tiny)
    training = rows.corpus.training
    odd = replace(training[3].conversation, messages=training[3].conversation.messages[:1])
    rows.corpus = replace(rows.corpus, training=(*training, replace(training[3], conversation=odd)))
    done: list[int] = []
    plan = rows.plan(done.append, processes=2)
    assert plan == rows.plan()
    assert done == list(range(1, 14))
    assert len(plan.refused) == 1


def test_what_is_sent_is_read_without_transformers(data: Path, tiny: Path) -> None:
    """Whose import alone would take longer than some thousand rows."""
    rows = rows_of(data, tiny)
    sent = pickle.dumps((rows._look, rows.corpus.training[0]))
    program = (
        "import pickle, sys; look, item = pickle.load(sys.stdin.buffer); print(tuple(look(item)),"
        " [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    read = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, check=True)
    assert read.stdout.decode() == f"{tuple(rows._look(rows.corpus.training[0]))} []\n"


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_its_end_ends_all(tmp_path: Path, tiny: Path, data: Path, by: signal.Signals) -> None:
    """Ctrl-C as a terminal sends it, to every process of the session; and the first process alone killed."""
    big = tmp_path / "big.jsonl"
    big.write_text(data.read_text() * 2000)
    program = "import ftllm.train.prepare as p; p.cores = lambda: 2; from ftllm.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", "--model", tiny, "--data", big, "--dry-run", "--json"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["task"] == "rendering"
        if by == signal.SIGINT:
            os.killpg(child.pid, by)
        else:
            assert json.loads(child.stdout.readline())["completed"]  # they are at work
            child.kill()
        _, errors = child.communicate(timeout=60)  # when the last one lets go of its pipes
    assert (child.returncode, errors) == ((130, "interrupted\n") if by == signal.SIGINT else (-by, ""))
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
