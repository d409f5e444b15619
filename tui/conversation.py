"""The conversation under way: its session in the store, and the reply that the engine makes for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ftllm.chat import store as chats
from ftllm.chat.events import AnyEvent, Done, Failed, Loaded
from ftllm.chat.options import ChatOptions, LoadSettings, ReplyOptions
from ftllm.chat.remote import Remote, Target, parse_remote
from ftllm.chat.session import ChatMessage, context_of, continuation_of
from ftllm.chat.store import Author, Node, Recorder, SessionInfo, Store
from ftllm.errors import UserError
from tui.talker import Talker

NO_REPLY = -1
"""The number of a reply the engine could not be asked for."""


class Conversation:
    """A session, which begins to exist with its first message.

    Methods raise `UserError` and `WorkError` where the store cannot do it.

    Attributes:
        info: the session as it was when it was opened; None while it has no message.
        nodes: the messages shown, oldest first.
        model: what is talked to.
        load: how it is loaded.
        model_hash: its fingerprint, once it is loaded.
        options: how replies are made from now on.
        system: the system prompt.
        images: files that the next message shows.
        recorder: of the reply under way.
    """

    def __init__(self, store: Store, talker: Talker, model: Target, options: ChatOptions) -> None:
        self.store = store
        self.model = model
        self.load = options.load
        self.model_hash = ""
        self.options = options.reply
        self.system = options.system
        self.images = options.images
        self.title = options.session or ""  # of the session that the first message begins
        self.info: SessionInfo | None = None
        self.nodes: list[Node] = []
        self.recorder: Recorder | None = None
        self.delta_seconds = options.reply.delta_seconds  # how often the screen wants to hear of more text
        self._talker = talker
        self._number = NO_REPLY

    @property
    def busy(self) -> bool:
        """Whether a reply is under way."""
        return self.recorder is not None

    @property
    def remote(self) -> bool:
        """Whether an endpoint is talked to, which need not do all that is asked of it."""
        return isinstance(self.model, Remote)

    @property
    def shows_images(self) -> bool:
        """Whether the model must see images to go on."""
        return bool(self.images) or any(node.message.images for node in self.nodes)

    @property
    def messages(self) -> list[ChatMessage]:
        """What was said on the branch that is shown, the reply under way not included."""
        return [node.message for node in self.nodes]

    # Which session it is

    def open(self, session: int) -> SessionInfo:
        """Go on with a session as it was left."""
        self.info = chats.get_session(self.store, session)
        self.system, self.options = self.info.system, self.info.options
        self.refresh()
        return self.info

    def begin(self, system: str | None, options: ReplyOptions) -> None:
        """Begin a new one."""
        self.info, self.nodes, self.title = None, [], ""
        self.system, self.options = system, options

    def refresh(self) -> None:
        """Read the messages again."""
        self.nodes = chats.shown(self.store, self.info.id) if self.info else []

    def change(self, *, system: str | None = None, options: ReplyOptions | None = None) -> None:
        """Go on in another way from now on; an empty system prompt is none."""
        if system is not None:
            self.system = system or None
        self.options = options or self.options
        if self.info is not None:
            chats.change_session(self.store, self.info.id, options=self.options)
            chats.set_system(self.store, self.info.id, self.system)

    # With whom

    def talk_to(self, model: Target, load: LoadSettings) -> None:
        """Go on with another model, or with this one loaded in another way; the next reply's session remembers it."""
        self.model, self.load, self.model_hash = model, load, ""

    def loaded(self, event: Loaded) -> None:
        """The model is there."""
        self.model_hash = event.fingerprint
        if isinstance(self.model, Remote) and not self.model.model:
            self.model = parse_remote(event.path)  # an endpoint's only model has a name now

    def remember_model(self) -> None:
        """Let the session be opened with this model from now on."""
        if self.info is not None:
            chats.change_session(self.store, self.info.id, model=str(self.model), load=self.load)

    def keep_view(self, view: dict[str, Any]) -> None:
        """Remember what the screen wants to find again."""
        if self.info is not None:
            chats.change_session(self.store, self.info.id, view=view)

    # Asking

    def ask(self, text: str) -> Node:
        """Add the person's turn, with the `images`, and ask for a reply; the turn."""
        with self.store.writing():
            info = self.info or chats.create_session(
                self.store,
                title=self.title,
                system=self.system,
                model=str(self.model),
                load=self.load,
                options=self.options,
            )
            after = chats.last_of(self.nodes)
            asked = chats.add_user(self.store, info.id, text, after=after, images=self.images)
        self.info, self.images = info, ()
        self.nodes.append(asked)
        self._begin(asked.id)
        return asked

    def regenerate(self, node: Node) -> None:
        """Ask for another reply in place of one, or for one after a message of the person."""
        after = node.id if node.message.role == "user" else node.parent
        if after is None:
            raise UserError("there is nothing this reply answers")
        self._begin(after)

    def edit(self, node: Node, text: str) -> None:
        """Say a message otherwise, beside the old one; the person's is asked again."""
        edited = chats.edit(self.store, node.id, text)
        self.refresh()
        if node.message.role == "user":
            self._begin(edited.id)

    def go_on(self, node: Node) -> None:
        """Ask for more of a reply, which must be the last message shown."""
        self.recorder = chats.continue_reply(self.store, node.id)
        self._generate(continuation_of(self.system, self.messages))

    def step(self, node: int, step: int) -> Node:
        """Show a message beside another one, with what follows it."""
        there = chats.step_branch(self.store, node, step)
        self.refresh()
        return there

    def delete(self, node: int) -> None:
        """Take a message out, with what follows it."""
        chats.delete_message(self.store, node)
        self.refresh()

    def restore(self, node: int) -> None:
        """Undo `delete`."""
        chats.restore_message(self.store, node)
        self.refresh()

    def take(self, event: AnyEvent) -> bool:
        """Fold an event in; whether it is about the reply under way.

        Raises:
            UserError: the reply has ended, but cannot be written. It is not under way any more.
        """
        if self.recorder is None or event.reply != self._number:
            return False
        recorder = self.recorder
        if isinstance(event, Done | Failed):
            self.recorder = None
        try:
            recorder.feed(event)
        finally:
            if self.recorder is None:
                self.refresh()
        return True

    def close(self) -> None:
        """Keep what there is of a reply under way, for the program leaves."""
        if self.recorder is not None:
            self.recorder.finish()
            self.recorder = None

    def _begin(self, after: int) -> None:
        assert self.info is not None
        author = Author(str(self.model), self.model_hash, self.options)
        with self.store.writing():
            self.remember_model()
            self.recorder = chats.begin_reply(self.store, self.info.id, after=after, author=author)
        self.refresh()
        self._generate(context_of(self.system, self.messages[:-1]))

    def _generate(self, messages: Sequence[Mapping[str, Any]]) -> None:
        self._number = NO_REPLY
        self._number = self._talker.generate(messages, replace(self.options, delta_seconds=self.delta_seconds))
