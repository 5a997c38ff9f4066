"""PNG files without their metadata: pixels that are whole stay readable beside text or profiles that are too large."""

from __future__ import annotations

import io
import struct
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METADATA = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_HEAD = 8  # length and kind of a chunk
_CHECKSUM = 4


def without_metadata(file: IO[bytes]) -> io.BytesIO | None:
    """The file's chunks without text and colour profile; None when it is no PNG. Nothing is decompressed."""
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return None
    kept = io.BytesIO()
    kept.write(SIGNATURE)
    while len(head := file.read(_HEAD)) == _HEAD:
        length = struct.unpack(">I", head[:4])[0] + _CHECKSUM
        if head[4:] in _METADATA:
            file.seek(length, io.SEEK_CUR)
        else:
            kept.write(head)
            kept.write(file.read(length))
        if head[4:] == b"IEND":
            break
    kept.seek(0)
    return kept
