"""Chats that last: sessions in SQLite, each a tree of messages.

For the screen (and anyone else), in the order of use:

    store = open_store()                      # tell `store.recovered` when it is not None
    for info in list_sessions(store): ...     # the sidebar: title, updated, model, number of messages
    nodes = shown(store, info.id)             # the transcript: each with `branch`/`branches` for `< 2/3 >`

    info = create_session(store, system=..., model=..., load=..., options=...)      # with the first message, not before
    asked = add_user(store, info.id, text, after=last_of(nodes))
    recorder = begin_reply(store, info.id, after=asked.id, author=Author(model, model_hash, options))
    recorder.feed(event)                      # every event of the reply: saved as it grows, complete at Done or Failed
    recorder.reply                            # the `Reply` to draw, as before; `recorder.node` is its message
    recorder.finish()                         # when the program leaves in the middle of a reply

What the model sees is `session.context_of(system, [node.message for node in shown(...)])`.

    regenerate          begin_reply(store, session, after=reply.parent, author=...)
    edit and resend     edited = edit(store, node.id, text), then begin_reply(after=edited.id)
    continue a reply    generate(session.continuation_of(system, messages up to the reply)) and
                        continue_reply(store, node.id): its message grows
    < and >             step_branch(store, node.id, -1 or 1), then draw shown() again
    undo                delete_session / restore_session, delete_message / restore_message
    search              search(store, "carry 17"): hits with a snippet and the places to mark in it;
                        show_node(store, hit.node) brings its branch up before shown()
    export, import      export_session(store, session, Path("x.md" or "x.json")), import_session(store, path)
    unsent text         a session's is in its view; keep_draft(store, text) and take_draft(store) before there is one
    scroll place        change_session(store, session, view={"scroll": 120}); info.view has it again

Nothing is overwritten by any of these but a reply that is continued. Every function takes well under a millisecond
on a session of a thousand messages (`shown` about ten) and may be called on the event loop; errors are `UserError`
and `WorkError`, as everywhere. Two processes may work on the same file, and on the same session: say `after` what the
person saw, and each goes on on a branch of its own.
"""

from ftllm.chat.store.database import DamagedError, Recovery, Store, default_path, memory_store, open_store
from ftllm.chat.store.drafts import keep_draft, take_draft
from ftllm.chat.store.messages import (
    Author,
    Node,
    add_message,
    add_user,
    all_nodes,
    branches_of,
    delete_message,
    edit,
    get_node,
    last_of,
    restore_message,
    show_node,
    shown,
    step_branch,
    update_message,
)
from ftllm.chat.store.recorder import Recorder, begin_reply, continue_reply
from ftllm.chat.store.search import Hit, search
from ftllm.chat.store.sessions import (
    SessionInfo,
    change_session,
    create_session,
    delete_session,
    erase_session,
    find_session,
    get_session,
    list_sessions,
    rename_session,
    restore_session,
    set_system,
)
from ftllm.chat.store.transfer import export_session, from_json, import_session, save_code, to_json, to_markdown

__all__ = [
    "Author",
    "DamagedError",
    "Hit",
    "Node",
    "Recorder",
    "Recovery",
    "SessionInfo",
    "Store",
    "add_message",
    "add_user",
    "all_nodes",
    "begin_reply",
    "branches_of",
    "change_session",
    "continue_reply",
    "create_session",
    "default_path",
    "delete_message",
    "delete_session",
    "edit",
    "erase_session",
    "export_session",
    "find_session",
    "from_json",
    "get_node",
    "get_session",
    "import_session",
    "keep_draft",
    "last_of",
    "list_sessions",
    "memory_store",
    "open_store",
    "rename_session",
    "restore_message",
    "restore_session",
    "save_code",
    "search",
    "set_system",
    "show_node",
    "shown",
    "step_branch",
    "take_draft",
    "to_json",
    "to_markdown",
    "update_message",
]
