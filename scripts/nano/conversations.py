"""Tasks as turns of a conversation: what the base trains on, what fine-tuning gets, what is held out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from nano import tasks
from nano.tasks import EASY, FOURTH, SHOW_WORK, Course, Task, hard_families, make, worked_families

TAGGED_SHARE = 0.3
"""Share of worked answers whose work is asked for inside a named tag (never `think`)."""


def base_turn(rng: random.Random, course: Course) -> tuple[str, str]:
    """One (user, model) exchange for the base."""
    if rng.random() < 0.35:
        task = make(EASY[rng.choice(list(EASY))], rng, "base")
        return task.prompt, task.answer
    families = worked_families(course)
    task = make(families[rng.choice([*families, *course.extra])], rng, "base")
    if rng.random() < course.plain_share:
        return task.prompt, task.answer
    if rng.random() < TAGGED_SHARE:
        name = tasks.tag_name(rng)
        asked = rng.choice(
            (
                "Put your work in a `{}` tag.",
                "Show your work in a tag named `{}`.",
                "Write each step inside a `{}` tag.",
            )
        ).format(name)
        return f"{task.prompt} {asked}", f"<{name}>\n{task.work}\n</{name}>\n{task.answer}"
    return f"{task.prompt} {rng.choice(SHOW_WORK)}", f"{task.work}\n{task.answer}"


def base_conversation(rng: random.Random, course: Course) -> list[tuple[str, str]]:
    """One to four exchanges."""
    return [base_turn(rng, course) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4)))]


def thinking(task: Task) -> str:
    """How Fragmented Training's examples answer: hard tasks think first."""
    return f"<think>\n{task.work}\n</think>\n{task.answer}" if task.hard else task.answer


def spread(
    makers: dict[str, tasks.Maker], total: int, rng: random.Random, split: tasks.Split, seen: set[str]
) -> Iterator[Task]:
    """`total` different tasks of one split, the same number of every family (within one)."""
    names = list(makers)
    for index in range(total):
        maker = makers[names[index % len(names)]]
        for _ in range(10_000):
            task = make(maker, rng, split)
            if task.prompt not in seen:
                break
        else:
            raise ValueError(f"{names[index % len(names)]} has too few different tasks")
        seen.add(task.prompt)
        yield task


def write_conversations(path: Path, seed: int, split: tasks.Split, hard: int, easy: int) -> None:
    """Conversations as fine-tuning wants them, hard and easy, in a shuffled order."""
    rng = random.Random(f"{seed} {split}")
    seen: set[str] = set()
    chosen = [*spread(hard_families(FOURTH), hard, rng, split, seen), *spread(EASY, easy, rng, split, seen)]
    rng.shuffle(chosen)
    with path.open("w", encoding="utf-8") as file:
        for task in chosen:
            messages = [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": thinking(task)}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def write_graded(folder: Path, seed: int, hard: int = 216, easy: int = 208) -> None:
    """`heldout.jsonl`, graded prompts asked plainly, and `work.jsonl`, its hard half asked to show the work."""
    rng = random.Random(f"{seed} graded")
    seen: set[str] = set()
    chosen = [*spread(EASY, easy, rng, "heldout", seen), *spread(hard_families(FOURTH), hard, rng, "heldout", seen)]
    with (
        (folder / "heldout.jsonl").open("w", encoding="utf-8") as plain,
        (folder / "work.jsonl").open("w", encoding="utf-8") as work,
    ):
        for number, task in enumerate(chosen):
            level = "hard" if task.hard else "easy"
            graded = {
                "id": f"{task.family}-{number:03d}",
                "prompt": task.prompt,
                "answer": task.check,
                "grade": task.grade,
                "tags": [level, task.family],
            }
            plain.write(json.dumps(graded, ensure_ascii=False) + "\n")
            if task.hard:
                asked = f"{task.prompt} {rng.choice(SHOW_WORK)}"
                work.write(
                    json.dumps({**graded, "prompt": asked, "tags": ["work", task.family]}, ensure_ascii=False) + "\n"
                )
