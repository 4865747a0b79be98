"""What a prompt may be, and the name of its folder."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from triplaneturbo.errors import ConfigError

MAX_LENGTH = 80
# Names of devices in Windows, where no file or folder can be called so.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)


def check_prompts(prompts: object, place: str) -> tuple[str, ...]:
    """`prompts` as a tuple, if it is a list of texts with something in them.

    Raises:
        ConfigError: it is not; `place` says where it was given.
    """
    if not isinstance(prompts, (list, tuple)):
        raise ConfigError(f"{place} must be a list of texts, not {prompts!r}")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ConfigError(f"{place} must be a list of texts, but {prompt!r} is in it")
        if not prompt.strip():
            raise ConfigError(f"{place} must be a list of texts that are not empty, but {prompt!r} is in it")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ConfigError(f"{place}: {prompt!a} is not valid Unicode; write it in UTF-8")
    return tuple(prompts)


def slug(prompt: str) -> str:
    """A folder name for `prompt`: letters, digits, `_` and `-` only, at most 80 characters, never empty.

    Spaces become underscores. Whatever else had to be dropped, replaced or cut is made up for by 8 digits of a hash,
    so that two prompts never share a folder: "a cat" -> "a_cat", "a cat." -> "a_cat-9f1c...".
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "", prompt.replace(" ", "_"))
    plain = readable.replace("_", " ") == prompt and len(readable) <= MAX_LENGTH and not _DEVICE.fullmatch(readable)
    if readable.startswith("-") or not (readable and plain):
        digest = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
        return f"{readable[: MAX_LENGTH - 9]}-{digest}".lstrip("-")
    return readable


def folder_names(prompts: Sequence[str]) -> Iterable[str]:
    """The `slug` of each prompt; from its second time on with a number after a dot, which no slug has."""
    times: Counter[str] = Counter()
    for prompt in prompts:
        times[prompt] += 1
        yield slug(prompt) if times[prompt] == 1 else f"{slug(prompt)}.{times[prompt]}"
