"""Keeping what is sent, where the server was started with `--keep DIR`."""

import secrets
from pathlib import Path
from typing import Any

from ganscope.errors import GanscopeError
from ganscope.files import cut_name, replacing
from ganscope.images import IMAGE_SUFFIXES
from ganscope.web.project import Project
from ganscope.web.reading import Sent

LONGEST = 100
"""Bytes of a sender's name for a picture that its file's name begins with."""


class Keeper:
    """Keeps pictures under names of its own, and enters them into the project, if there is one.

    Raises `GanscopeError` if the folder cannot be written.
    """

    def __init__(self, folder: Path | None, project: Project | None):
        self.folder, self.project = folder, project
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GanscopeError(f"--keep {folder}: cannot be written ({error.strerror})") from None

    def keep(self, sent: Sent, record: dict[str, Any], thumbnail: str) -> None:
        """Write a picture to the disk, and its record into the project, before it is answered; one
        that could not be read is not kept.
        """
        if self.folder is None or record.get("error"):
            return
        suffix = Path(sent.name).suffix.lower()
        stem = "".join(c for c in Path(sent.name).stem if c.isalnum() or c in "-_")
        name = f"{cut_name(stem, LONGEST) or 'picture'}-{secrets.token_hex(6)}"
        path = self.folder / f"{name}{suffix if suffix in IMAGE_SUFFIXES else ''}"
        try:
            with replacing(path) as part:
                part.write_bytes(sent.content)
        except OSError as error:
            raise GanscopeError(
                f"the picture cannot be kept ({error.strerror}); tell whoever runs this server"
            ) from None
        if self.project:
            self.project.add(record | {"path": str(path)}, thumbnail)
