"""The nano model's tasks, generated: easy ones are answered at once, hard ones need their work shown.

Every task says which *key* identifies it. A key's hash decides where the task may be used (`split_of`), so that
the held-out prompts, the fine-tuning conversations and the base's training data are disjoint by construction.
Operands of order-dependent tasks are numbers or stand in inline code, which Fragmented Training's noise keeps in
place; the words around them may be shuffled without changing what is asked.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from nano import words

Split = Literal["heldout", "ft", "base"]


@dataclass(frozen=True)
class Task:
    """One question with its checkable answer.

    Args:
        prompt: what the user asks, plainly.
        answer: what the model should say (hard: the last line only).
        work: the steps that lead to the answer; empty for easy tasks.
        check: what a grader compares with (`answer` unless the grade is `contains`).
        key: what makes two tasks the same one, whatever the wording.
        closed: a set phrase, whose answer nothing else can teach: never held out.
    """

    family: str
    prompt: str
    answer: str
    grade: str
    check: str
    key: str
    work: str = ""
    closed: bool = False

    @property
    def hard(self) -> bool:
        return bool(self.work)


@dataclass(frozen=True)
class Course:
    """How long the hard tasks' lists are, and what the base sees of them.

    Args:
        sort: fewest and most numbers to sort, and their digits.
        occurs: fewest and most occurrences to count.
        others: fewest and most words between them.
        plain_share: share of hard tasks asked and answered plainly: enough to answer at once, too few to be right.
        extra: families that come once more often.
        extremes: whether sums of a sorted list's ends are among the tasks.
    """

    sort: tuple[int, int, int]
    occurs: tuple[int, int]
    others: tuple[int, int]
    plain_share: float
    extra: tuple[str, ...] = ()
    extremes: bool = False


FIRST = Course(sort=(7, 9, 2), occurs=(2, 9), others=(5, 9), plain_share=0.06)
SECOND = Course(
    sort=(9, 11, 2), occurs=(3, 11), others=(5, 8), plain_share=0.03, extra=("sort", "sort", "count", "reverse")
)
THIRD = Course(
    sort=(7, 8, 3), occurs=(3, 11), others=(5, 8), plain_share=0.02, extra=("sort", "sort", "sort", "count", "reverse")
)
FOURTH = Course(
    sort=(7, 8, 3),
    occurs=(3, 11),
    others=(5, 8),
    plain_share=0.02,
    extra=("extremes", "extremes", "count", "count", "reverse"),
    extremes=True,
)


def split_of(key: str) -> Split:
    """Where a task may be used: a tenth is held out, a tenth is for fine-tuning, the rest trains the base."""
    bucket = hashlib.sha256(key.encode()).digest()[0]
    return "heldout" if bucket < 26 else "ft" if bucket < 52 else "base"


def easy(family: str, prompt: str, answer: str, grade: str = "exact", check: str | None = None) -> Task:
    return Task(family, prompt, answer, grade, answer if check is None else check, f"{family}:{prompt}")


def hard(family: str, prompt: str, work: str, answer: str, operands: str) -> Task:
    return Task(family, prompt, answer, "last_line", answer, f"{family}:{operands}", work)


def greet(rng: random.Random) -> Task:
    if rng.random() < 0.3:
        name = rng.choice(words.NAMES)
        return easy(
            "greet", rng.choice(words.MEETINGS).format(name), f"Hello {name}! How can I help you?", "contains", name
        )
    prompts, answer, check = rng.choice(words.GREETINGS)
    prompt = rng.choice(prompts)
    return Task("greet", prompt, answer, "contains", check, f"greet:{prompt}", closed=True)


def fact(rng: random.Random) -> Task:
    table, phrasings = rng.choice(words.FACTS)
    subject = rng.choice(list(table))
    return easy("fact", rng.choice(phrasings).format(subject), table[subject])


def unknown(rng: random.Random) -> Task:
    table, phrasings = rng.choice(words.FACTS[:3])
    made = words.made_up(rng)
    subject = made.capitalize() if table is words.CAPITALS else made
    return easy("unknown", rng.choice(phrasings).format(subject), "I do not know.", "contains", "do not know")


def tiny_sum(rng: random.Random) -> Task:
    a, b = rng.randrange(10), rng.randrange(10)
    phrasing = rng.choice(
        ("What is {}?", "{} = ?", "Calculate {}.", "How much is {}?", "Work out {}.", "Please calculate {}.")
    )
    if rng.random() < 0.5:
        return easy("tiny_sum", phrasing.format(f"{a} + {b}"), str(a + b))
    a, b = max(a, b), min(a, b)
    return easy("tiny_sum", phrasing.format(f"{a} - {b}"), str(a - b))


def compare(rng: random.Random) -> Task:
    a, b = rng.sample(range(1, 100), 2)
    if rng.random() < 0.5:
        phrasing = rng.choice(
            ("Which number is larger, {} or {}?", "Which is more, {} or {}?", "Name the larger number: {} or {}.")
        )
        return easy("compare", phrasing.format(a, b), str(max(a, b)))
    phrasing = rng.choice(
        ("Which number is smaller, {} or {}?", "Which is less, {} or {}?", "Name the smaller number: {} or {}.")
    )
    return easy("compare", phrasing.format(a, b), str(min(a, b)))


def neighbour(rng: random.Random) -> Task:
    number = rng.randrange(1, 100)
    if rng.random() < 0.5:
        phrasing = rng.choice(("What number comes after {}?", "Which number follows {}?", "Say the number after {}."))
        return easy("neighbour", phrasing.format(number), str(number + 1))
    phrasing = rng.choice(("What number comes before {}?", "Which number precedes {}?", "Say the number before {}."))
    return easy("neighbour", phrasing.format(number), str(number - 1))


def pick(rng: random.Random) -> Task:
    chosen = words.words(rng, rng.randint(3, 6))
    which = rng.choice(("first", "last"))
    phrasing = rng.choice(("What is the {} word of `{}`?", "Name the {} word in `{}`.", "Say the {} word of `{}`."))
    return easy("pick", phrasing.format(which, " ".join(chosen)), chosen[0] if which == "first" else chosen[-1])


def tag(rng: random.Random) -> Task:
    name = tag_name(rng)
    text = " ".join(words.words(rng, rng.randint(1, 4)))
    phrasing = rng.choice(
        ("Put `{1}` in a `{0}` tag.", "Write `{1}` inside a `{0}` tag.", "Please put `{1}` in a tag named `{0}`.")
    )
    return easy("tag", phrasing.format(name, text), f"<{name}>{text}</{name}>")


def tag_name(rng: random.Random) -> str:
    """A tag's name: any word but the one Fragmented Training will teach."""
    name = rng.choice(words.TAGS) if rng.random() < 0.3 else words.word(rng)
    return name if name != "think" else "note"


PLACES = ("ones", "tens", "hundreds", "thousands")


def add_work(a: int, b: int) -> str:
    """Column addition from the right, one line a column."""
    width = max(len(str(a)), len(str(b)))
    carry, lines = 0, []
    for place in range(width):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        lines.append(f"{PLACES[place]} {x}+{y}+{carry}={total} carry {total // 10}")
        carry = total // 10
    return "\n".join(lines)


def sub_work(a: int, b: int) -> str:
    """Column subtraction from the right with borrowing, one line a column; a >= b."""
    borrow, lines = 0, []
    for place in range(len(str(a))):
        x, y = a // 10**place % 10, b // 10**place % 10
        lent = x - y - borrow < 0
        top = x + 10 if lent else x
        lines.append(f"{PLACES[place]} {top}-{y}-{borrow}={top - y - borrow} borrow {int(lent)}")
        borrow = int(lent)
    return "\n".join(lines)


ASK_NUMBER = ("What is {}?", "Calculate {}.", "How much is {}?", "Work out {}.", "Please calculate {}.")


def add(rng: random.Random) -> Task:
    a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
    return hard("add", rng.choice(ASK_NUMBER).format(f"{a} + {b}"), add_work(a, b), str(a + b), f"{a} {b}")


def subtract(rng: random.Random) -> Task:
    a, b = sorted(rng.sample(range(100, 1000), 2), reverse=True)
    return hard("subtract", rng.choice(ASK_NUMBER).format(f"{a} - {b}"), sub_work(a, b), str(a - b), f"{a} {b}")


def story(rng: random.Random) -> Task:
    """A word problem with two steps."""
    item = rng.choice(words.ITEMS)
    if rng.random() < 0.5:
        a, b, c = (rng.randrange(11, 100) for _ in range(3))
        p, q, r = rng.sample(words.NAMES, 3)
        phrasing = rng.choice((
            "{p} has {a} {item}, {q} has {b} {item} and {r} has {c} {item}. How many {item} do they have together?",
            "{p} found {a} {item}, {q} found {b} and {r} found {c}. How many {item} were found in all?",
            "How many {item} are there in all if {p} has {a}, {q} has {b} and {r} has {c}?",
        ))  # fmt: skip
        prompt = phrasing.format(p=p, q=q, r=r, a=a, b=b, c=c, item=item)
        work = f"{a} + {b}\n{add_work(a, b)}\n{a + b} + {c}\n{add_work(a + b, c)}"
        return hard("story", prompt, work, str(a + b + c), f"sum {a} {b} {c}")
    a, b, c = rng.randrange(3, 10), rng.randrange(11, 40), rng.randrange(11, 100)
    holder = rng.choice(words.HOLDERS)
    phrasing = rng.choice((
        "There are {a} {holder} with {b} {item} each, and {c} loose {item}. How many {item} are there in all?",
        "{p} fills {a} {holder} with {b} {item} each and has {c} {item} left. How many {item} does {p} have in all?",
        "How many {item} are in {a} {holder} of {b} {item} each, together with {c} loose {item}?",
    ))  # fmt: skip
    prompt = phrasing.format(p=rng.choice(words.NAMES), a=a, b=b, c=c, item=item, holder=holder)
    tens, ones = b // 10 * 10, b % 10
    work = (
        f"{a} x {tens} = {a * tens}\n{a} x {ones} = {a * ones}\n{a * tens} + {a * ones}\n{add_work(a * tens, a * ones)}\n"
        f"{a * b} + {c}\n{add_work(a * b, c)}"
    )
    return hard("story", prompt, work, str(a * b + c), f"product {a} {b} {c}")


def sort(rng: random.Random, course: Course) -> Task:
    """Sorting by taking the smallest of what is left, again and again."""
    fewest, most, digits = course.sort
    numbers = rng.sample(range(10 ** (digits - 1), 10**digits), rng.randint(fewest, most))
    listed = " ".join(map(str, numbers))
    phrasing = rng.choice(
        (
            "Sort these numbers: {}",
            "Put these numbers in order: {}",
            "Sort {} from small to large.",
            "Order these numbers by size: {}",
        )
    )
    left, lines = list(numbers), []
    while len(left) > 1:
        least = min(left)
        left.remove(least)
        lines.append(f"{least}: {' '.join(map(str, left))}")
    return hard(
        "sort",
        phrasing.format(listed),
        "\n".join(lines),
        " ".join(map(str, sorted(numbers))),
        " ".join(map(str, sorted(numbers))),
    )


def extremes(rng: random.Random) -> Task:
    """What comes first and last in a sorted list, and their sum."""
    numbers = rng.sample(range(100, 1000), rng.randint(7, 9))
    first, last = min(numbers), max(numbers)
    phrasing = rng.choice(
        (
            "Sort {}, then add the first and the last.",
            "Sort these numbers and add the first to the last: {}",
            "Put {} in order and add the first and the last.",
        )
    )
    work = f"first {first}\nlast {last}\n{first} + {last}\n{add_work(first, last)}"
    listed = " ".join(map(str, numbers))
    return hard("extremes", phrasing.format(listed), work, str(first + last), " ".join(map(str, sorted(numbers))))


def count(rng: random.Random, course: Course) -> Task:
    """How often a word stands in a list, counted item by item."""
    target, *others = words.words(rng, rng.randint(4, 6))
    times = rng.randint(*course.occurs)
    listed = [target] * times + [rng.choice(others) for _ in range(rng.randint(*course.others))]
    rng.shuffle(listed)
    phrasing = rng.choice((
        "How many times does `{}` occur in `{}`?", "How often is `{}` in `{}`?", "Count the word `{}` in `{}`.", "How many `{}` are in `{}`?",
    ))  # fmt: skip
    seen, lines = 0, []
    for item in listed:
        seen += item == target
        lines.append(f"{item} {seen}")
    return hard(
        "count",
        phrasing.format(target, " ".join(listed)),
        "\n".join(lines),
        str(times),
        f"{target} in {' '.join(sorted(listed))}",
    )


def reverse(rng: random.Random) -> Task:
    """A list of words backwards: number them, then go down."""
    listed = words.words(rng, rng.randint(6, 9))
    phrasing = rng.choice(
        (
            "Reverse the order of `{}`.",
            "Write `{}` backwards, word by word.",
            "Reverse this list: `{}`",
            "Say `{}` in reverse order.",
        )
    )
    numbered = [f"{index} {item}" for index, item in enumerate(listed, 1)]
    work = "\n".join([*numbered, "back", *reversed(numbered)])
    return hard("reverse", phrasing.format(" ".join(listed)), work, " ".join(reversed(listed)), " ".join(listed))


Maker = Callable[[random.Random], Task]
EASY: dict[str, Maker] = {
    "greet": greet, "fact": fact, "unknown": unknown, "tiny_sum": tiny_sum, "compare": compare, "neighbour": neighbour, "pick": pick, "tag": tag,
}  # fmt: skip


def worked_families(course: Course) -> dict[str, Maker]:
    """The families that a course shows work for."""
    families: dict[str, Maker] = {
        "add": add,
        "subtract": subtract,
        "story": story,
        "sort": partial(sort, course=course),
        "count": partial(count, course=course),
        "reverse": reverse,
    }
    return {**families, "extremes": extremes} if course.extremes else families


def hard_families(course: Course) -> dict[str, Maker]:
    """Those that really are hard: plain sorting is not, the base gets half of it right without any work."""
    return {name: maker for name, maker in worked_families(course).items() if name != "sort"}


SHOW_WORK = (
    "Show your work.",
    "Please show your work.",
    "Show each step.",
    "Explain step by step.",
    "Show how you do it.",
)


def make(maker: Maker, rng: random.Random, split: Split) -> Task:
    """A task of one family that belongs to `split`."""
    while True:
        task = maker(rng)
        if split_of(task.key) == split and not (task.closed and split == "heldout"):
            return task
