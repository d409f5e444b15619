"""The `ftllm` program, also as `python -m ftllm`."""

import gc

gc.disable()  # until all is imported, for that makes no garbage, and looking for it takes a twentieth of the time

from ftllm.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
