"""Folder names of prompts."""

import re

import pytest

from triplaneturbo.naming import MAX_LENGTH, slug

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
    "x" * 300,
    "x" * 299 + "y",
    "猫",
    "犬",
    "a\nb",
    "a\x00b",
    "~",
    "$HOME",
]


@pytest.mark.parametrize("prompt", AWKWARD)
def test_is_a_plain_folder_name(prompt):
    assert re.fullmatch(r"[A-Za-z0-9_-]+", slug(prompt))
    assert len(slug(prompt)) <= MAX_LENGTH


def test_two_prompts_never_share_a_folder():
    assert len({slug(prompt) for prompt in AWKWARD}) == len(AWKWARD)


def test_ordinary_prompts_stay_readable():
    assert slug("a red cube on a blue sphere") == "a_red_cube_on_a_blue_sphere"
    assert slug("A DSLR photo of a car, 8k.").startswith("A_DSLR_photo_of_a_car_8k-")
