"""The same name for the same weights, wherever the file lies and whatever it is called."""

from __future__ import annotations

import hashlib

from ftllm.llama.header import Header

SAMPLE_BYTES = 4096


def fingerprint(header: Header) -> str:
    """64 hexadecimal digits: SHA-256 of the size, the whole header, and 4 KiB from the middle of every tensor.

    A hash of all of a 16 GB file takes half a minute, this takes milliseconds. An adapter that was merged changed each
    tensor that it touched nearly everywhere. Of a split model, the first file's.
    """
    digest = hashlib.sha256(str(header.file_size).encode())
    with header.path.open("rb") as file:
        digest.update(file.read(header.data_offset))
        for tensor in header.tensors:
            length = min(SAMPLE_BYTES, tensor.nbytes)
            file.seek(tensor.offset + (tensor.nbytes - length) // 2)
            digest.update(file.read(length))
    return digest.hexdigest()
