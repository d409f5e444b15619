"""The process that others are forked from: `python -m ftllm.export.forking '[[MODULE, [STDIN, STDOUT, STDERR]], ...]'`.

It imports what all need, forks, and from then on only waits, to tell on stdout what became of each: JSON lines with the
`module` and its `pid`, and at its end its exit `code`. The numbers are those of open files, which become the processes'
own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
import warnings

from ftllm import structure

Files = tuple[int, int, int]


def main() -> None:
    """Import, fork and wait; returns in each process that has come to its end."""
    wanted: list[tuple[str, Files]] = [(module, tuple(files)) for module, files in json.loads(sys.argv[1])]
    try:
        structure.remember()
        from ftllm.export import worker

        worker.prepare()
    except BaseException:
        for _, (_, _, errors) in wanted:
            os.write(errors, traceback.format_exc().encode())
        raise
    gc.freeze()  # else looking for garbage would copy what they share
    modules: dict[int, str] = {}
    for module, files in wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # numpy has a thread that waits, and survives a fork
            process = os.fork()
        if process == 0:
            _become(module, files, [number for _, numbers in wanted for number in numbers])
            return
        modules[process] = module
        _tell(module=module, pid=process)
    for _, files in wanted:
        for number in files:
            os.close(number)
    while modules:
        process, status = os.wait()
        _tell(module=modules.pop(process), code=os.waitstatus_to_exitcode(status))


def _become(module: str, files: Files, opened: list[int]) -> None:
    """Be `module` with these files, in a session of its own."""
    os.setsid()
    for number, own in zip(files, (0, 1, 2), strict=True):
        os.dup2(number, own)
    for number in opened:
        os.close(number)
    importlib.import_module(module).main()


def _tell(**what: str | int) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
