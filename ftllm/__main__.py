"""The `ftllm` program, also as `python -m ftllm`."""

import gc
import sys

from ftllm.start import START

SCREEN = "chat"


def main() -> None:
    """Run the program; its screen starts with what is remembered of the last start."""
    gc.disable()  # importing makes no garbage, and looking for it takes a twentieth of the time
    if sys.argv[1:2] == [SCREEN]:
        START.begin()
    else:
        from ftllm import structure

        structure.remember()
    from ftllm.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
