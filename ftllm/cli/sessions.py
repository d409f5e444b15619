"""`ftllm sessions`: the chats that are kept: listed, searched, exported, imported, renamed and removed."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ftllm.errors import UserError

if TYPE_CHECKING:
    from ftllm.chat.store import SessionInfo, Store

Action = Literal["list", "show", "search", "export", "import", "rename", "rm", "restore"]
WANTED: dict[str, tuple[str, ...]] = {
    "list": (),
    "show": ("NAME",),
    "search": ("TEXT",),
    "export": ("NAME", "FILE"),
    "import": ("FILE",),
    "rename": ("NAME", "TITLE"),
    "rm": ("NAME",),
    "restore": ("NAME",),
}


def sessions(
    action: Annotated[Action, typer.Argument(metavar="ACTION", help="One of those below.")] = "list",
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] [TEXT|FILE|TITLE]", show_default=False)
    ] = None,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="list: those that were removed in the last 30 days.")
    ] = False,
    erase: Annotated[bool, typer.Option("--erase", help="rm: for good, at once.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="list and search: print JSON.")] = False,
) -> None:
    """List, search and move the chats that are kept.

    A NAME is a session's title, number or uid.

    \b
    list                 all sessions, the one touched last first
    show NAME            one of them as Markdown
    search TEXT          every message with all these words; words in quotes stand together
    export NAME FILE     to .md (the branch that is shown) or .json (all of it)
    import FILE          a .json that was exported, or one conversation to train on
    rename NAME TITLE
    rm NAME              restore NAME undoes it for 30 days

    \b
    Examples:
      ftllm sessions
      ftllm sessions search "carry the one"
      ftllm sessions export notes notes.md
    """
    from ftllm.chat import store as chats

    words = arguments or []
    wanted = WANTED[action]
    if action == "search":
        words = [" ".join(words)] if words else []
    if len(words) != len(wanted):
        form = " ".join(["ftllm sessions", action, *wanted])
        raise UserError(f"{action} takes {' and '.join(wanted) or 'nothing more'}", f"`{form}`")
    with chats.open_store() as store:
        if store.recovered:
            print(f"warning: {store.recovered}", file=sys.stderr)
        match action:
            case "list":
                _print_list(chats.list_sessions(store, deleted=deleted), json_output)
            case "search":
                _print_hits(store, words[0], json_output)
            case "import":
                info = chats.import_session(store, Path(words[0]))
                print(f"{info.id}  {_visible(info.title)}")
            case "restore":
                chats.restore_session(store, _find(store, words[0], deleted=True).id)
            case _:
                _change(store, action, _find(store, words[0]), words[1:], erase=erase)


def _change(store: Store, action: Action, info: SessionInfo, words: list[str], *, erase: bool) -> None:
    """What is done with one session."""
    from ftllm.chat import store as chats

    match action:
        case "show":
            text = chats.to_markdown(store, info.id)
            sys.stdout.write(_visible(text) if sys.stdout.isatty() else text)
        case "export":
            chats.export_session(store, info.id, Path(words[0]))
            print(words[0])
        case "rename":
            chats.rename_session(store, info.id, words[0].strip())
        case _ if erase:
            chats.erase_session(store, info.id)
        case _:
            chats.delete_session(store, info.id)
            print(f"removed; `ftllm sessions restore {info.id}` brings it back for 30 days", file=sys.stderr)


def _find(store: Store, name: str, *, deleted: bool = False) -> SessionInfo:
    from ftllm.chat import store as chats

    info = chats.find_session(store, name, deleted=deleted)
    if info is None:
        kind = "removed session" if deleted else "session"
        raise UserError(f"there is no {kind} {name!r}", f"`ftllm sessions list{' --deleted' * deleted}` names them")
    return info


def _print_list(infos: list[SessionInfo], json_output: bool) -> None:
    if json_output:
        print(json.dumps([asdict(info) for info in infos], ensure_ascii=False))
        return
    for info in infos:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.updated))
        print(f"{info.id:>4}  {when}  {info.messages:>4}  {_visible(info.title) or '(untitled)'}")


def _print_hits(store: Store, text: str, json_output: bool) -> None:
    from ftllm.chat.store import search

    hits = search(store, text)
    if json_output:
        print(json.dumps([asdict(hit) for hit in hits], ensure_ascii=False))
        return
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    for hit in hits:
        line, end = "", 0
        for start, stop in hit.marks:
            line += f"{_visible(hit.snippet[end:start])}{bold}{_visible(hit.snippet[start:stop])}{plain}"
            end = stop
        where = "title" if hit.node is None else "thought" if hit.field == "thought" else hit.role
        print(f"{hit.session:>4}  {_visible(hit.title)} ({where}): {line}{_visible(hit.snippet[end:])}")


def _visible(text: str) -> str:
    from ftllm.visible import visible

    return visible(text)
