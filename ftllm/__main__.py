"""The `ftllm` program, also as `python -m ftllm`."""

import gc

gc.disable()  # importing makes no garbage, and looking for it takes a twentieth of the time

from ftllm.cli.main import main  # noqa: E402

gc.enable()  # a process that is started from here may import this and never call `main`

if __name__ == "__main__":
    main()
