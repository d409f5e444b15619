"""The same name for the same weights, wherever the file lies and whatever it is called."""

from __future__ import annotations

import hashlib

from ftllm.llama.header import Header

SAMPLES, SAMPLE_BYTES = 64, 16 << 10


def fingerprint(header: Header) -> str:
    """64 hexadecimal digits: SHA-256 of the size, the whole header, and 64 samples spread over the tensors' data.

    A hash of all of a 16 GB file takes half a minute, this takes milliseconds; two exports of different weights differ
    everywhere, not between two samples. Of a split model, the first file's.
    """
    digest = hashlib.sha256(str(header.file_size).encode())
    with header.path.open("rb") as file:
        digest.update(file.read(header.data_offset))
        length = header.file_size - header.data_offset
        for number in range(SAMPLES):
            file.seek(header.data_offset + max(0, length - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
