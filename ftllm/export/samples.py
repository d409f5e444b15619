"""Short chats that every export is tried on: several scripts, code, numbers, odd white space, a thought."""

from __future__ import annotations

Messages = list[dict[str, str]]

CHATS: tuple[Messages, ...] = (
    [
        {"role": "user", "content": "What is 17 + 25?"},
        {"role": "assistant", "content": "<think>\n17 + 25 = 42\n</think>\n\n42"},
    ],
    [
        {"role": "user", "content": "Grüße! Où est l'été? ¿Qué?"},
        {"role": "assistant", "content": "Hello, how can I help you?"},
    ],
    [
        {"role": "user", "content": "请问：今天星期几？ Привет, мир. مرحبا"},
        {"role": "assistant", "content": "ありがとう 🙂👩‍🚀"},
    ],
    [
        {"role": "user", "content": "def f(x):\n\treturn  x**2\n\n\n# 3,141.59 %   end"},
        {"role": "assistant", "content": "    four spaces;\nCamelCase_snake 0x1F -> don't"},
        {"role": "user", "content": "again"},
    ],
)
ANSWER = "Certainly"  # found again in a rendered chat to see what follows an answer
PLAIN = ("The capital of France is", "1, 2, 3, 4, 5,", "Grüße aus Köln, 你好 🙂")
SHARE = 7  # tokens of each sample whose logits are compared
# Positions compared at most. A mean of so many is known to a quarter of itself, where limits are several times what is
# usual, and a model that is sure of half of them has the 20 that `limits.DECIDED` asks for. A multiple of 48, which
# matrix products like: 57 positions took as long as 64.
POSITIONS = 48
# Of longer texts: positions that go through the reference's layers together, and how long a sequence may be before
# fewer do, for the scores of attention grow with its square.
BATCH, LONG = 4096, 1024
