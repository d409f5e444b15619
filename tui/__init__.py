"""The Textual application: a screen over the events of `ftllm.chat`."""

import tui.lazy  # noqa: F401  before anything of Textual is imported
