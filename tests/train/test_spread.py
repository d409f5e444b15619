"""Work spread over processes: what it gives, what it raises, and that nothing hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ftllm.errors import UserError, WorkError
from ftllm.train import spread as module
from ftllm.train.spread import spread

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="spread over processes on Linux only")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 10)
    monkeypatch.setattr(module, "CHUNK", 4)


def test_in_order_and_by_others() -> None:
    found = list(spread(lambda number: (number * number, os.getpid()), 50, 2))
    assert [square for square, _ in found] == [number * number for number in range(50)]
    assert os.getpid() not in {process for _, process in found}
    assert {process for _, process in spread(lambda n: (n, os.getpid()), 9, 2)} == {os.getpid()}
    assert {process for _, process in spread(lambda n: (n, os.getpid()), 50, 1)} == {os.getpid()}


def test_a_refusal_keeps_its_hint() -> None:
    def refuse(number: int) -> int:
        if number == 20:
            raise UserError("row 20", "mend it")
        return number

    with pytest.raises(UserError, match="row 20") as caught:
        list(spread(refuse, 50, 2))
    assert (caught.value.hint, caught.value.exit_code) == ("mend it", 2)


def test_a_killed_process_is_failed_work() -> None:
    def killed(number: int) -> int:
        if number == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(WorkError, match="was killed"):
        list(spread(killed, 50, 2))


def test_the_plan_is_the_same(data: Path, tiny: Path) -> None:
    from ftllm.train.config import resolve
    from ftllm.train.corpus import load_corpus
    from ftllm.train.data import Rows
    from ftllm.train.settings import Setting
    from ftllm.vocabulary import from_directory

    given = {"model": str(tiny), "data": [str(data)], "max_length": 60, "bad_rows": "drop", "noise.unit": "token"}
    config = resolve([{key: Setting(value, "test") for key, value in given.items()}])
    corpus = load_corpus(config)
    odd = replace(corpus.training[3].conversation, messages=corpus.training[3].conversation.messages[:1])
    training = (*corpus.training, replace(corpus.training[3], conversation=odd))
    rows = Rows(config, replace(corpus, training=training), from_directory(tiny))
    done: list[int] = []
    plan = rows.plan(done.append, processes=2)
    assert plan == rows.plan()
    assert done == list(range(1, 14))
    assert len(plan.refused) == 1


@pytest.mark.slow
def test_ctrl_c_ends_all(tmp_path: Path, tiny: Path, data: Path) -> None:
    """The program in a session of its own, interrupted as a terminal does it: every process gets the signal."""
    big = tmp_path / "big.jsonl"
    big.write_text(data.read_text() * 2000)
    program = "import ftllm.train.prepare as p; p.cores = lambda: 2; from ftllm.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", "--model", tiny, "--data", big, "--dry-run", "--json"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["task"] == "rendering"
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (130, "interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
