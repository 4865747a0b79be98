"""Folder names for prompts."""

import hashlib
import re

MAX_LENGTH = 80


def slug(prompt: str) -> str:
    """A folder name for `prompt`: letters, digits, `_` and `-` only, at most 80 characters, never empty.

    Spaces become underscores. Whatever else had to be dropped, replaced or cut is made up for by 8 digits of a hash,
    so that two prompts never share a folder: "a cat" -> "a_cat", "a cat." -> "a_cat-9f1c...".
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "", prompt.replace(" ", "_"))
    if readable and readable.replace("_", " ") == prompt and len(readable) <= MAX_LENGTH:
        return readable
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
    return f"{readable[: MAX_LENGTH - 9]}-{digest}".lstrip("-")
