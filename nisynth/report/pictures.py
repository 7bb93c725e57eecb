"""Pictures to files: whole or not at all, and a clear line where they cannot go."""

import io
import os
import uuid
from contextlib import suppress
from pathlib import Path

from PIL import Image

from nisynth.errors import ConfigError


def write_png(path: str, picture: Image.Image) -> None:
    """Writes a PNG under its name in one step. Raises ConfigError when the file cannot be written."""
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    write_file(path, sink.getvalue())


def write_file(path: str, data: bytes) -> None:
    """Writes a local file so that a reader sees the old or the new one, whole. Raises ConfigError."""
    final = Path(path).expanduser()
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    try:
        if final.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        temporary.write_bytes(data)
        os.replace(temporary, final)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            temporary.unlink()
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(
            f"output {path}: cannot be written ({reason}); name a file in a folder that exists"
        ) from None
