"""What a prompt may be, and the name of its folder."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from triplaneturbo.errors import ConfigError

MAX_LENGTH = 80
_DIGITS = 32  # 128 bits of a hash
# What a prompt may look like if its folder is to have no hash: on many disks A is a, names of devices cannot be given
# in Windows, and names that end like those with a hash are kept for them.
_PLAIN = re.compile(rf"(?!-)(?!(con|prn|aux|nul|com\d|lpt\d)$)(?!(.*-)?[0-9a-f]{{{_DIGITS}}}$)[a-z0-9 -]+")


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

    Spaces become underscores. Prompts with anything but small letters, digits, spaces and hyphens, and long ones, get
    128 bits of a hash behind what is left of them, so that no two prompts share a folder, even where A and a are one:
    "a cat" -> "a_cat", "A cat." -> "A_cat-9f1c...".
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "", prompt.replace(" ", "_"))
    if _PLAIN.fullmatch(prompt) and len(readable) <= MAX_LENGTH:
        return readable
    digest = hashlib.blake2b(prompt.encode(), digest_size=_DIGITS // 2).hexdigest()
    return f"{readable[: MAX_LENGTH - _DIGITS - 1]}-{digest}".lstrip("-")


def folder_names(prompts: Sequence[str]) -> Iterable[str]:
    """The `slug` of each prompt; from its second time on with a number after a dot, which no slug has."""
    times: Counter[str] = Counter()
    for prompt in prompts:
        times[prompt] += 1
        yield slug(prompt) if times[prompt] == 1 else f"{slug(prompt)}.{times[prompt]}"
