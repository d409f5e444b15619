"""What people wrote into a card on the Hub survives the next push.

A card written here ends in a section that is the people's own, and in a record of what was generated: a hash of each
front-matter key and of each section. What no longer agrees with it was edited on the Hub: an edited key keeps the
person's value, an edited or added section moves into the people's section.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from ftllm.hub.markdown import split_front_matter, split_sections

BEGIN = "<!-- ftllm: what stands from here on is yours; `ftllm push` keeps it -->"
END = "<!-- ftllm: yours ends here -->"
TITLE = "## Notes"
PLACEHOLDER = "*(Nothing yet. Edit this card on the Hub: this section is kept when the model is pushed again.)*"
RECORD = re.compile(r"<!-- ftllm-record (\{.*?\}) -->")


def join(front: dict[str, Any], body: str, before: str | None) -> tuple[dict[str, Any], str]:
    """Front matter and body of a new card, with what people wrote into the one that is on the Hub.

    Args:
        front: as generated now.
        body: as generated now, sections of level 2.
        before: the card on the Hub; None where there is none.
    """
    sections = [digest(text) for _, text in split_sections(body)]
    record = {"front": {key: digest(value) for key, value in front.items()}, "sections": sections}
    notes = ""
    if before is not None:
        try:
            theirs, text = split_front_matter(before)
        except ValueError:
            theirs, text = {}, before
        known = _record(text)
        front = _front(front, theirs, known.get("front"))
        notes = _notes(text, known.get("sections"))
    section = f"{BEGIN}\n{TITLE}\n\n{notes or PLACEHOLDER}\n{END}"
    return front, f"{body.rstrip()}\n\n{section}\n\n<!-- ftllm-record {json.dumps(record, sort_keys=True)} -->\n"


def digest(value: Any) -> str:
    """A short hash of a key's value or a section's text, blind to how lines end."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").strip().split("\n")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _record(text: str) -> dict[str, Any]:
    match = RECORD.search(text)
    try:
        value = json.loads(match[1]) if match else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _front(ours: dict[str, Any], theirs: dict[str, Any], known: Any) -> dict[str, Any]:
    """Ours, where people did not set, change or remove a key. Without a record all of theirs wins."""
    known = known if isinstance(known, dict) else {}
    result = dict(ours)
    for key, value in theirs.items():
        if known.get(key) != digest(value):
            both = key == "tags" and isinstance(value, list) and isinstance(ours.get(key), list)
            result[key] = (
                [*value, *(tag for tag in ours[key] if tag not in value)] if both and key not in known else value
            )
    for key in known:
        if key not in theirs:
            result.pop(key, None)
    return result


def _notes(text: str, known: Any) -> str:
    """The people's section, and after it the sections they changed or added elsewhere."""
    text = text.replace("\r\n", "\n")
    begin, end = text.find(BEGIN), text.find(END)
    inside, outside = "", text
    if begin >= 0:
        stop = end if end > begin else len(text)
        inside = text[begin + len(BEGIN) : stop].strip().removeprefix(TITLE).strip()
        outside = text[:begin] + text[stop + len(END) :]
    known = known if isinstance(known, list) else []
    sections = [part for _, part in split_sections(RECORD.sub("", outside).strip())]
    changed = [part for part in sections if part.strip() and digest(part) not in known]
    kept = "" if inside == PLACEHOLDER else inside.replace(PLACEHOLDER, "").strip()
    return "\n\n".join([*([kept] if kept else []), *(part.strip() for part in changed)])
