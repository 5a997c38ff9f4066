"""Digest of a run's images: names, sizes, and the ends of the files, whatever their dates and their folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diticli.data.folder_images import FolderImages
from diticli.data.images import ImageSource

_END = 4096
"""Bytes read at the begin and at the end of a file: the end of a PNG holds a checksum of all its pixels."""
_MOST_READ = 20_000
"""Files of which bytes are read, evenly spread; of the others names and sizes count."""


def content_digest(source: ImageSource) -> str | None:
    """Digest of a folder's images; None for other sources, which are compared by their fingerprint."""
    if not isinstance(source, FolderImages):
        return None
    digest = hashlib.sha256()
    every = -(-len(source) // _MOST_READ)
    for index in range(len(source)):
        path = source.path(index)
        try:
            size, ends = path.stat().st_size, _ends(path) if index % every == 0 else b""
        except OSError:
            size, ends = -1, b""
        digest.update(f"{source.file_name(index)}\0{size}\0".encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(ends).digest())
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_END)
        size = file.seek(0, 2)
        file.seek(max(size - _END, len(head)))
        return head + file.read(_END)
