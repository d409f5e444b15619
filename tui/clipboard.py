"""Text into the person's clipboard: by the terminal (OSC 52, which works over ssh), and by what the machine has.

Web pages go there too where there is no browser to open them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

SECONDS = 2.0  # a helper that takes longer has not worked
TOOLS = (  # the variable that says it has a display to talk to, and the command
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
)


def helper(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """The command that puts its standard input into the clipboard, where there is one.

    Inside tmux it is tmux itself: by default it lets no program reach the terminal's clipboard, but does so for its
    own buffers. Over ssh the machine's own clipboard is not the person's.
    """
    command: tuple[str, ...]
    if environment.get("TMUX"):
        command = ("tmux", "load-buffer", "-w", "-")
    elif environment.get("SSH_CONNECTION"):
        return None
    elif shutil.which("pbcopy"):
        command = ("pbcopy",)
    else:
        found = (tool for variable, tool in TOOLS if environment.get(variable) and shutil.which(tool[0]))
        return next(found, None)
    return command if shutil.which(command[0]) else None


def takes_osc52(environment: Mapping[str, str]) -> bool:
    """Whether the terminal may take text for the clipboard; most do, and none says so."""
    return environment.get("TERM") not in ("linux", "dumb") and environment.get("TERM_PROGRAM") != "Apple_Terminal"


def has_browser(environment: Mapping[str, str], platform: str = sys.platform) -> bool:
    """Whether a browser would open before the person: not over ssh, and not one that takes this terminal for itself."""
    if environment.get("SSH_CONNECTION"):
        return False
    return platform in ("darwin", "win32") or any(map(environment.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def give_to_helper(text: str, environment: Mapping[str, str]) -> bool:
    """Put a text into the clipboard by the machine's own means; whether that worked."""
    command = helper(environment)
    if command is None:
        return False
    with suppress(OSError, subprocess.SubprocessError):
        quiet = subprocess.DEVNULL
        done = subprocess.run(command, input=text.encode(), stdout=quiet, stderr=quiet, timeout=SECONDS, check=False)
        return done.returncode == 0
    return False
