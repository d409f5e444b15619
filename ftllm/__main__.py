"""`python -m ftllm` is the same program as the `ftllm` console script."""

from ftllm.cli.main import main

if __name__ == "__main__":
    main()
