"""Folder names of prompts."""

import hashlib
import re

import pytest

from triplaneturbo.errors import ConfigError
from triplaneturbo.naming import MAX_LENGTH, check_prompts, folder_names, slug

AWKWARD = [
    "",
    ".",
    "..",
    "/",
    "../../etc/passwd",
    "a/b",
    "a b",
    "a_b",
    "a  b",
    "a b.",
    "a b,",
    "a B",
    "-rf",
    "CON:",
    "CON",
    "nul",
    "lpt1",
    "COM9",
    "-",
    "--out",
    " ",
    "\t",
    "\u0642\u0637\u0629",
    "\u202ecat",
    "\U0001f408",
    "/etc/passwd",
    "C:\\cat",
    "word " * 500,
    "x" * 300,
    "x" * 299 + "y",
    "猫",
    "犬",
    "a\nb",
    "a\x00b",
    "A b",
    "A B",
    "a\u0131",
    "I",
    "i",
    "a" * 80,
    "a" * 81,
    "~",
    "$HOME",
]


@pytest.mark.parametrize("prompt", AWKWARD)
def test_is_a_plain_folder_name(prompt):
    assert re.fullmatch(r"[A-Za-z0-9_-]+", slug(prompt))
    assert len(slug(prompt)) <= MAX_LENGTH
    assert not slug(prompt).startswith("-")
    assert not re.fullmatch("con|prn|aux|nul|(com|lpt)[0-9]", slug(prompt).lower())


def test_two_prompts_never_share_a_folder():
    """Not on a disk that takes A for a either."""
    assert len({slug(prompt).lower() for prompt in AWKWARD}) == len(AWKWARD)


@pytest.mark.parametrize("prompt", ["a cat.", "!", "a cat\n", "-a"])
def test_a_prompt_that_looks_like_the_folder_of_another_does_not_share_it(prompt):
    impostor = slug(prompt)
    assert re.search("(^|-)[0-9a-f]{32}$", impostor)
    names = {slug(text) for text in (prompt, impostor, impostor.replace("_", " "), slug(impostor))}
    assert len(names) == len({prompt, impostor, impostor.replace("_", " "), slug(impostor)})


def test_the_hash_has_128_bits():
    first, second = "\u4f9c\u4e32", "\u54bc\u4e3e"
    short = [hashlib.blake2b(prompt.encode(), digest_size=4).digest() for prompt in (first, second)]
    assert short[0] == short[1]  # with 32 bits, these two would share a folder
    assert slug(first) != slug(second)
    assert len(slug("a cat.")) == len("a_cat-") + 128 // 4


def test_ordinary_prompts_stay_readable():
    assert slug("a red cube on a blue sphere") == "a_red_cube_on_a_blue_sphere"
    assert slug("A DSLR photo of a car, 8k.").startswith("A_DSLR_photo_of_a_car_8k-")


def test_a_prompt_that_comes_again_has_a_folder_of_its_own():
    assert list(folder_names(["a cat", "a dog", "a cat", "a cat.2", "a cat"])) == [
        "a_cat",
        "a_dog",
        "a_cat.2",
        slug("a cat.2"),
        "a_cat.3",
    ]


def test_prompts_may_hold_any_text():
    assert check_prompts(AWKWARD[1:3], "here") == (".", "..")
    assert check_prompts(("a\0b", "\u732b"), "here") == ("a\0b", "\u732b")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a cat", "here must be a list of texts, not 'a cat'"),
        ({"a": "cat"}, "must be a list"),
        (["a cat", 3], "but 3 is in it"),
        ([None], "but None is in it"),
        ([""], "not empty, but ''"),
        (["a cat", " \n\t\u3000"], "not empty"),
        (["caf\udce9"], "not valid Unicode"),
    ],
)
def test_what_is_no_prompt(prompts, message):
    with pytest.raises(ConfigError, match=message):
        check_prompts(prompts, "here")
