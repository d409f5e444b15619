"""A reply on its way into the store: killed, continued, failed; two processes at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftllm.chat import store as chats
from ftllm.chat.events import Done, Failed, Stats, TextDelta, ThinkDelta, ThinkEnd, ThinkStart
from ftllm.chat.session import ChatMessage
from ftllm.chat.store import Author, Recorder, Store

ROOT = Path(__file__).resolve().parent.parent.parent.parent
STATS = Stats(9.0, 1, 12, 0, 7, 4, 7.4, 0.1, 50.0, 256, 23)
# A program that records a reply of one numbered word every 10 ms, and prints each word's number when it has fed it.
STREAMING = """
import sys, time
from pathlib import Path
from ftllm.chat import store as chats
from ftllm.chat.events import TextDelta
store = chats.open_store(Path(sys.argv[1]))
session = chats.create_session(store)
asked = chats.add_user(store, session.id, "count", after=None)
recorder = chats.begin_reply(store, session.id, after=asked.id, author=chats.Author("m"))
for number in range(10_000):
    recorder.feed(TextDelta(time.monotonic(), 1, f" {number}"))
    print(number, time.monotonic(), flush=True)
    time.sleep(0.01)
"""
# A program that goes on with a session, several times, as fast as it can.
TALKING = """
import sys
from pathlib import Path
from ftllm.chat import store as chats
from ftllm.chat.session import ChatMessage
with chats.open_store(Path(sys.argv[1])) as store:
    session = chats.find_session(store, "shared") or chats.create_session(store, title="shared")
    for number in range(100):
        after = chats.last_of(chats.shown(store, session.id))
        chats.add_message(store, session.id, ChatMessage("user", f"{sys.argv[2]} {number}"), after=after)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with chats.open_store(tmp_path / "chats.db") as store:
        yield store


def begin(store: Store) -> Recorder:
    session = chats.create_session(store).id
    asked = chats.add_user(store, session, "q", after=None)
    return chats.begin_reply(store, session, after=asked.id, author=Author("m.gguf", "abc"))


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_a_reply_is_written_at_its_end_with_all_that_is_known(store: Store) -> None:
    recorder = begin(store)
    for event in (
        ThinkStart(1.0, 1),
        ThinkDelta(1.1, 1, "Hm.", 2),
        ThinkEnd(8.4, 1, "closed", 7.4, 3),
        TextDelta(8.5, 1, "42\n"),
        STATS,
        Done(9.0, 1, "stop"),
    ):
        recorder.feed(event)
    node = chats.get_node(store, recorder.node)
    assert node.message == ChatMessage("assistant", "42", "Hm.", 7.4, 3, 4, "stop", STATS, "closed")
    assert node.message == recorder.message
    assert (node.author.model, node.author.model_hash, node.error) == ("m.gguf", "abc", "")


def test_a_failed_reply_keeps_what_came_and_says_why(store: Store) -> None:
    recorder = begin(store)
    recorder.feed(TextDelta(1.0, 1, "half"))
    recorder.feed(Failed(2.0, 1, "the engine was ended by SIGKILL", "", crashed=True))
    node = chats.get_node(store, recorder.node)
    assert (node.message.content, node.message.stop_reason) == ("half", "failed")
    assert node.error == "the engine was ended by SIGKILL"


def test_a_continued_reply_grows(store: Store) -> None:
    recorder = begin(store)
    for event in (ThinkStart(0, 1), ThinkDelta(0, 1, "Hm.", 1), ThinkEnd(2, 1, "budget", 2.0, 3)):
        recorder.feed(event)
    for event in (TextDelta(2, 1, "one, "), STATS, Done(3, 1, "length")):
        recorder.feed(event)
    more = chats.continue_reply(store, recorder.node)
    assert more.reply.message.content == "one,"
    for event in (TextDelta(0, 2, " two"), STATS, Done(1, 2, "stop")):
        more.feed(event)
    message = chats.get_node(store, recorder.node).message
    assert (message.content, message.thought, message.stop_reason) == ("one, two", "Hm.", "stop")
    assert (message.thought_seconds, message.thought_tokens, message.answer_tokens) == (2.0, 3, 8)
    assert message.thought_end == "budget"
    assert chats.get_session(store, 1).messages == 2


def test_a_continued_reply_keeps_its_thoughts_apart(store: Store) -> None:
    recorder = begin(store)
    thought = (ThinkStart(0, 1), ThinkDelta(0, 1, "Hm.", 1), ThinkEnd(2, 1, "budget", 2.0, 3))
    for event in (*thought, TextDelta(2, 1, "one"), STATS, Done(3, 1, "length")):
        recorder.feed(event)
    assert chats.get_node(store, recorder.node).message.thoughts == ()
    more = chats.continue_reply(store, recorder.node)
    for event in (*thought, TextDelta(0, 2, " two"), STATS, Done(1, 2, "stop")):
        more.feed(event)
    thoughts = chats.get_node(store, recorder.node).message.thoughts
    assert [(thought.end, thought.at) for thought in thoughts] == [("budget", 0), ("budget", 3)]


def test_what_came_is_written_between_by_itself_even_when_nothing_more_comes(store: Store) -> None:
    recorder = begin(store)
    recorder.feed(TextDelta(1.0, 1, "so far"))
    deadline = time.monotonic() + 20
    while not (message := chats.get_node(store, recorder.node).message).content:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (message.content, message.stop_reason) == ("so far", "interrupted")
    recorder.finish()


def test_leaving_in_the_middle_writes_what_there_is(store: Store) -> None:
    recorder = begin(store)
    recorder.feed(ThinkStart(1.0, 1))
    recorder.feed(ThinkDelta(1.1, 1, "Hm.", 1))
    recorder.finish()
    message = chats.get_node(store, recorder.node).message
    assert (message.thought, message.stop_reason, message.thought_end) == ("Hm.", "interrupted", "interrupted")
    for event in (ThinkEnd(2.0, 1, "answer_now", 1.0, 3), TextDelta(2.0, 1, "so far")):
        recorder.feed(event)
    recorder.finish()
    message = chats.get_node(store, recorder.node).message
    assert (message.content, message.stop_reason, message.thought_end) == ("so far", "interrupted", "answer_now")


def test_killed_in_the_middle_of_a_reply_at_most_a_second_is_lost(tmp_path: Path) -> None:
    process = start(STREAMING, tmp_path / "chats.db")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(150)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    fed = [(int(number), float(when)) for number, when in map(str.split, lines)]
    with chats.open_store(tmp_path / "chats.db") as store:
        assert store.recovered is None
        _, reply = chats.shown(store, 1)
    assert reply.message.stop_reason == "interrupted"
    words = reply.message.content.split()
    assert words == [str(number) for number in range(len(words))]
    lost = fed[-1][1] - fed[len(words) - 1][1]
    assert 0 <= lost <= 1.0


def test_two_processes_go_on_with_one_session_and_nothing_is_lost(tmp_path: Path) -> None:
    chats.open_store(tmp_path / "chats.db").close()
    processes = [start(TALKING, tmp_path / "chats.db", name) for name in ("a", "b", "c")]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    with chats.open_store(tmp_path / "chats.db") as store:
        nodes = [node for info in chats.list_sessions(store) for node in chats.all_nodes(store, info.id)]
    said = sorted(node.message.content for node in nodes)
    assert said == sorted(f"{name} {number}" for name in "abc" for number in range(100))


def test_several_processes_may_make_the_file_together(tmp_path: Path) -> None:
    processes = [start(TALKING, tmp_path / "new" / "chats.db", name) for name in ("a", "b", "c", "d")]
    assert [process.wait(120) for process in processes] == [0] * 4


def test_several_threads_may_use_one_store(store: Store) -> None:
    session = chats.create_session(store).id
    nodes = [chats.add_user(store, session, f"{number}", after=None) for number in range(4)]

    def write(node: int) -> None:
        for number in range(50):
            chats.update_message(store, node, ChatMessage("user", str(number)))
            assert chats.get_node(store, node).message.content == str(number)

    threads = [threading.Thread(target=write, args=(node.id,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {node.message.content for node in chats.all_nodes(store, session)} == {"49"}
