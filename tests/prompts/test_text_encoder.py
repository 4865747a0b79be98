"""Text states: against transformers itself, and what becomes of prompts that are too long."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel

from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.prompts import DualTextProcessor, TextEncoder, TextProcessor

START, END = 0, 1
LENGTH = 6


def ids(letters: str) -> list[int]:
    return [10 + "abcdefgh".index(letter) for letter in letters.split()]


def test_tokens_are_padded_to_the_length_of_the_model(encoders: tuple[str, str]) -> None:
    encoder = TextEncoder(encoders[0])
    assert encoder.tokenize(["a b", ""]).tolist() == [[START, *ids("a b"), END, END, END], [START] + 5 * [END]]


@pytest.mark.parametrize(
    ("compat", "expected"), [("right", [START, *ids("a b c d"), END]), ("original", [START, *ids("a b c d e")])]
)
def test_a_long_prompt_keeps_its_end_token(encoders: tuple[str, str], compat: str, expected: list[int]) -> None:
    encoder = TextEncoder(encoders[0], compat=compat)
    assert encoder.tokenize(["a b c d e f g"]).tolist() == [expected]


def test_states_are_those_of_transformers(encoders: tuple[str, str]) -> None:
    encoder = TextEncoder(encoders[0])
    tokens, pooled = encoder.encode(["a b c", "d", "a b c"])
    model = CLIPTextModel.from_pretrained(Path(encoders[0]) / "text_encoder").eval()
    rows = torch.tensor([[START, *ids("a b c"), END, END], [START, *ids("d"), END, END, END, END]])
    with torch.no_grad():
        output = model(rows)
    torch.testing.assert_close(tokens, output.last_hidden_state[[0, 1, 0]])
    torch.testing.assert_close(pooled, torch.stack([tokens[0, 4], tokens[1, 2], tokens[2, 4]]))  # the first end token
    assert not tokens.requires_grad


def test_states_do_not_depend_on_what_was_encoded_with_them(encoders: tuple[str, str]) -> None:
    """Matrix products of several rows may be rounded differently: each prompt goes through the model alone."""
    encoder = TextEncoder(encoders[0])
    seen = []
    encoder.model.register_forward_hook(lambda model, inputs, output: seen.append(len(output.last_hidden_state)))
    encoder.encode(["a", "b c", "d"])
    assert seen == [1, 1, 1]


def test_weights_stored_in_half_precision_arrive_in_single(tmp_path: Path, encoders: tuple[str, str]) -> None:
    (tmp_path / "tokenizer").symlink_to(Path(encoders[0]) / "tokenizer")
    CLIPTextModel.from_pretrained(Path(encoders[0]) / "text_encoder").half().save_pretrained(tmp_path / "text_encoder")
    encoder = TextEncoder(tmp_path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder.encode(["a"])[0].dtype == torch.float32


def test_the_encoder_is_frozen(encoders: tuple[str, str]) -> None:
    encoder = TextEncoder(encoders[0])
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


def test_recent_prompts_are_not_encoded_again(encoders: tuple[str, str]) -> None:
    encoder = TextEncoder(encoders[0], remembered=2)
    sizes = []
    encoder.model.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    first, _ = encoder.encode(["a", "b", "a"])
    again, _ = encoder.encode(["b", "a"])
    assert torch.equal(again, first[[1, 0]])
    encoder.encode(["c"])  # b is forgotten: a was used last
    encoder.encode(["a"])
    encoder.encode(["b"])
    assert sizes == [1, 1, 1, 1]
    assert len(encoder._memory) == 2


def test_moving_the_encoder_forgets_states_of_the_old_device(encoders: tuple[str, str]) -> None:
    encoder = TextEncoder(encoders[0])
    encoder.encode(["a"])
    encoder.to("meta")
    assert not encoder._memory


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_an_incomplete_folder_is_named(tmp_path: Path, encoders: tuple[str, str], part: str) -> None:
    other = {"tokenizer": "text_encoder", "text_encoder": "tokenizer"}[part]
    (tmp_path / other).symlink_to(Path(encoders[0]) / other)
    with pytest.raises(WeightsError, match=f"has no {part}/"):
        TextEncoder(tmp_path)


def test_processor(encoders: tuple[str, str]) -> None:
    processor = TextProcessor({"pretrained_model_name_or_path": encoders[0], "negative_prompt": "h h", "spawn": True})
    states = processor(["a b", "c"])
    tokens, pooled = TextEncoder(encoders[0]).encode(["a b", "c", "h h", ""])
    torch.testing.assert_close(states.tokens, tokens[:2])
    torch.testing.assert_close(states.pooled, pooled[:2])
    torch.testing.assert_close(states.negative, tokens[2:3])
    torch.testing.assert_close(states.empty, tokens[3:])


def test_dual_processor(encoders: tuple[str, str]) -> None:
    processor = DualTextProcessor(
        {
            "pretrained_model_name_or_path": encoders[0],
            "pretrained_model_name_or_path_2nd": encoders[1],
            "negative_prompt": "g",
            "negative_prompt_2nd": "h",
        }
    )
    for states, folder, negative in zip(processor(["a b"]), encoders, "gh", strict=True):
        tokens, _ = TextEncoder(folder).encode(["a b", negative])
        torch.testing.assert_close(states.tokens, tokens[:1])
        torch.testing.assert_close(states.negative, tokens[1:])


def test_one_encoder_serves_both_sides_of_one_folder(encoders: tuple[str, str]) -> None:
    config = {"pretrained_model_name_or_path": encoders[0], "pretrained_model_name_or_path_2nd": encoders[0] + "/"}
    processor = DualTextProcessor(config)
    assert processor.encoder is processor.encoder_2nd
    assert len(list(processor.parameters())) == len(list(processor.encoder.parameters()))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"front_threshold": 30}, "prompts do not depend on the view"),
        ({"use_perp_neg": True}, "prompts do not depend on the view"),
        ({"prompt_library": "x"}, "set it under data"),
        ({"use_local_text_embeddings": False}, "leave it out"),
        ({"negative_promt": "x"}, "did you mean 'negative_prompt'"),
    ],
)
def test_options_that_make_no_sense_are_refused(encoders: tuple[str, str], option: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextProcessor({"pretrained_model_name_or_path": encoders[0], **option})
