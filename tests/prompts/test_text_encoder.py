"""Text states: against transformers itself, and what becomes of prompts that are too long."""

from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.prompts import ClipText, TextEncoder

START, END = 0, 1
LENGTH = 6


def ids(letters: str) -> list[int]:
    return [10 + "abcdefgh".index(letter) for letter in letters.split()]


def test_tokens_are_padded_to_the_length_of_the_model(encoders: tuple[str, str]) -> None:
    encoder = TextEncoder(encoders[0])
    assert encoder.tokenize(["a b", ""]).tolist() == [[START, *ids("a b"), END, END, END], [START] + 5 * [END]]


@pytest.mark.parametrize(
    ("keep", "expected"), [(True, [START, *ids("a b c d"), END]), (False, [START, *ids("a b c d e")])]
)
def test_a_long_prompt_keeps_its_end_token(encoders: tuple[str, str], keep: bool, expected: list[int]) -> None:
    encoder = TextEncoder(encoders[0], keep_end_token=keep)
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


@pytest.mark.gpu
def test_states_on_a_gpu_are_the_same_to_the_bit_in_any_company(tmp_path: Path, encoders: tuple[str, str]) -> None:
    """Four prompts are encoded at a time, on streams of their own; what is left is encoded one by one."""
    small = CLIPTextModel.from_pretrained(Path(encoders[0]) / "text_encoder").config
    config = CLIPTextConfig(**{**small.to_dict(), "hidden_size": 768, "intermediate_size": 3072})
    config.num_attention_heads, config.num_hidden_layers = 12, 3  # as wide as Stable Diffusion's
    (tmp_path / "tokenizer").symlink_to(Path(encoders[0]) / "tokenizer")
    CLIPTextModel(config).save_pretrained(tmp_path / "text_encoder")
    prompts = ["a", "b c", "d e", "f", "g a", "b"]
    together = TextEncoder(tmp_path).to("cuda").encode(prompts)
    encoder = TextEncoder(tmp_path).to("cuda")
    for row, prompt in enumerate(prompts):
        for found, alone in zip(together, encoder.encode([prompt]), strict=True):
            assert torch.equal(found[row], alone[0]), prompt


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


def test_weights_may_hold_more_but_lack_nothing(tmp_path: Path, encoders: tuple[str, str]) -> None:
    """Files of CLIP have `position_ids`, which transformers counts by itself, and some a projection."""
    folder = copytree(encoders[0], tmp_path / "encoder")
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    more = {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None], "text_projection.weight": torch.eye(3)}
    save_file(tensors | more, path, {"format": "pt"})
    assert torch.equal(TextEncoder(folder).encode(["a b"])[0], TextEncoder(encoders[0]).encode(["a b"])[0])
    name = next(name for name in tensors if name.endswith("final_layer_norm.bias"))
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"text_encoder: the weights do not fit config\.json: 1 missing"):
        TextEncoder(folder)


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


def test_states_of_prompts_of_the_negative_and_of_the_empty_one(encoders: tuple[str, str]) -> None:
    states = ClipText({"pretrained_model_name_or_path": encoders[0], "negative_prompt": "h h"})(["a b", "c"])
    tokens, pooled = TextEncoder(encoders[0]).encode(["a b", "c", "h h", ""])
    torch.testing.assert_close(states.tokens, tokens[:2])
    torch.testing.assert_close(states.pooled, pooled[:2])
    torch.testing.assert_close(states.negative, tokens[2:3])
    torch.testing.assert_close(states.empty, tokens[3:])
    assert states.by_view is None


def test_the_states_of_all_tokens_can_stand_for_the_text(encoders: tuple[str, str]) -> None:
    options = {"pretrained_model_name_or_path": encoders[0], "negative_prompt": "h h", "by_view": True}
    end, all_states = (ClipText({**options, "pooled": how})(["a b", "c"]) for how in ("end_of_text", "all_states"))
    assert torch.equal(all_states.pooled, end.tokens.reshape(2, -1))
    for name in ("tokens", "negative", "empty", "by_view"):
        assert torch.equal(getattr(all_states, name), getattr(end, name))


def test_an_encoder_can_lose_the_end_token(encoders: tuple[str, str]) -> None:
    for quirks in ([], ["lost-end-token"]):
        condition = ClipText({"pretrained_model_name_or_path": encoders[0], "quirks": quirks})
        assert condition.encoder.keep_end_token == (not quirks)


def by_view(folder: str, **options) -> ClipText:
    return ClipText({"pretrained_model_name_or_path": folder, "by_view": True, **options})


def test_text_by_view_is_that_of_the_prompt_with_the_side(
    encoders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    condition, seen = by_view(encoders[0]), []
    encode = condition.encoder.encode

    def spy(prompts):
        seen.append(list(prompts))
        return encode(prompts)

    monkeypatch.setattr(condition.encoder, "encode", spy)
    states = condition(["a b", "c"])
    sides = [[f"a b, {side} view", f"c, {side} view"] for side in ("front", "side", "back", "overhead")]
    assert seen[1:] == sides
    assert states.by_view.shape == (4, 2, LENGTH, 16)
    for side, prompts in enumerate(sides):
        torch.testing.assert_close(states.by_view[side], encode(prompts)[0])


def test_the_side_can_stand_before_the_prompt(encoders: tuple[str, str]) -> None:
    condition = by_view(encoders[0], side_first=True)
    texts = [f"{side} view of a b" for side in ("front", "side", "backside", "overhead")]
    torch.testing.assert_close(condition(["a b"]).by_view[:, 0], condition.encoder.encode(texts)[0])


# Azimuth 0 is the front; the limits are 45, 45 and 60 degrees.
SIDES = {(0, 15): 0, (44, 15): 0, (-44, 15): 0, (46, 15): 1, (90, 0): 1, (-90, 0): 1, (270, 0): 1, (134, 15): 1}
SIDES |= {(136, 15): 2, (180, 0): 2, (-180, 0): 2, (-136, 15): 2, (224, 15): 2, (0, 59): 0, (0, 61): 3, (180, 90): 3}


def cameras_at(places: list[tuple[float, float]]):
    azimuth, elevation = torch.tensor(places, dtype=torch.float32).unbind(1)
    full = torch.ones(len(places))
    return orbit_cameras(elevation, azimuth, 2 * full, 60 * full, n_view=1, relative=False)


def test_a_camera_sees_one_of_four_sides(encoders: tuple[str, str]) -> None:
    states = by_view(encoders[0])(["a", "b"])
    cameras = cameras_at(list(SIDES))
    assert states.sides(cameras).tolist() == list(SIDES.values())
    prompts = torch.arange(len(SIDES)) % 2
    text = states.seen_from(cameras, prompts)
    for row, (side, prompt) in enumerate(zip(SIDES.values(), prompts, strict=True)):
        assert torch.equal(text[row], states.by_view[side, prompt])


def test_where_a_side_ends_is_an_option(encoders: tuple[str, str]) -> None:
    states = by_view(encoders[0], view_limits=[90, 10, 20])(["a"])
    assert states.sides(cameras_at([(89, 0), (91, 0), (169, 0), (171, 0), (0, 21)])).tolist() == [0, 1, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"view_limits\[1\] must be in \[0, 180\]"):
        by_view(encoders[0], view_limits=[45, 200, 60])


def test_text_by_view_must_be_asked_for(encoders: tuple[str, str]) -> None:
    states = ClipText({"pretrained_model_name_or_path": encoders[0]})(["a"])
    with pytest.raises(ValueError, match=r"set by_view=true for this encoder in data\.conditions"):
        states.seen_from(cameras_at([(0, 0)]), torch.tensor([0]))


def test_an_unknown_option_names_the_nearest(encoders: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'negative_prompt'"):
        ClipText({"pretrained_model_name_or_path": encoders[0], "negative_promt": "x"})
