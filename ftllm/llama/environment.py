"""What the C libraries under llama.cpp read from the environment when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping

SHORT_SPIN, LONG_SPIN = "2000", "300000"
"""How often libgomp's threads look whether the others have come before they sleep: 0.1 milliseconds, or about 20.

They meet hundreds of times a token. Short is for work beside other work: on two cores, beside one busy program, two
threads give 17 tokens/s so, and 4 with the long one, which occupies the core that the thread they wait for needs. Where
nothing else runs, short costs 2 to 5 in a hundred, the most where a hypervisor takes a core away now and then.
"""

_HUGE_PAGES = "glibc.malloc.hugetlb"


def quickest(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a new process that has the processors to itself, what the person has set left as it is.

    Its threads wait long for each other, and where Linux gives large pages to those who ask (glibc reads the setting
    when a process starts), the memory of the conversation lies in them: 2 in a hundred more tokens a second at 1,024
    tokens of context, 5 at 16,384.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    if _HUGE_PAGES not in tunables:
        tunables = ":".join(filter(None, [tunables, f"{_HUGE_PAGES}=1"]))
    return {"GOMP_SPINCOUNT": LONG_SPIN, **environment, "GLIBC_TUNABLES": tunables}
