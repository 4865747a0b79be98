import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from triplaneturbo.evaluation.clip_models import load_clip


@pytest.mark.parametrize(("height", "width"), [(64, 64), (200, 160), (40, 50)])
def test_the_same_vectors_as_transformers(clip_folder, height, width):
    """Against the library's own image processor, tokenizer and forward pass."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    levels = np.stack([rows, columns, (np.sin(9 * rows) + 1) / 2], axis=-1)
    picture = (levels * 255).round().astype(np.uint8)
    captions = ["a red cube", "an orange cone on a blue disk"]
    judge = load_clip(str(clip_folder))
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)([picture], return_tensors="pt").pixel_values
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(captions, padding="max_length", return_tensors="pt").input_ids
    expected = CLIPModel.from_pretrained(clip_folder).eval()(input_ids=tokens, pixel_values=pixels)
    images = judge.images([Image.fromarray(picture)])
    torch.testing.assert_close(images, expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(judge.texts(captions), expected.text_embeds, atol=1e-5, rtol=0)


def test_texts_that_do_not_fit(clip_folder):
    """They are cut as the library's tokenizer cuts them, with the end token as the last."""
    judge = load_clip(str(clip_folder))
    texts = ["a cube", "A photo depicts a photo of a red cube"]
    assert judge.too_long(texts) == texts[1:]
    settings = {"padding": "max_length", "truncation": True, "max_length": 24, "return_tensors": "pt"}
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(texts, **settings).input_ids
    pixels = torch.zeros(1, 3, 64, 64)
    expected = CLIPModel.from_pretrained(clip_folder).eval()(input_ids=tokens, pixel_values=pixels)
    torch.testing.assert_close(judge.texts(texts), expected.text_embeds, atol=1e-5, rtol=0)


def test_models_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is not a CLIP model"):
        load_clip(str(tmp_path))
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        load_clip("open_clip:ViT-B-32/openai")


def test_open_clip_models(monkeypatch):
    """A stand-in with open_clip's interface: text vectors count tokens, picture vectors average pixels."""

    class Model(nn.Module):
        context_length = 4
        visual = SimpleNamespace(image_size=(8, 8), image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))

        def encode_image(self, pixels):
            return pixels.mean((2, 3))

        def encode_text(self, ids):
            return torch.stack([(ids == token).sum(1) for token in (5, 6, 9)], dim=1).float()

    def tokenizer(texts, context_length):
        rows = [[*(5 if word == "a" else 6 for word in text.split()), 9][:context_length] for text in texts]
        return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

    stand_in = SimpleNamespace(
        create_model=lambda architecture, pretrained, device: Model(), get_tokenizer=lambda architecture: tokenizer
    )
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    judge = load_clip("open_clip:small/none")
    torch.testing.assert_close(judge.texts(["a b"])[0], torch.full((3,), 3**-0.5))
    reddish = Image.new("RGB", (32, 48), (255, 127, 127))
    torch.testing.assert_close(judge.images([reddish])[0], torch.tensor([1.0, 0, 0]), atol=0.01, rtol=0)
    assert judge.too_long(["a b", "a b a b"]) == ["a b a b"]
    assert judge.tokenize(["a b a b"]) == [[5, 6, 5, 6, 9]]
    torch.testing.assert_close(judge.texts(["a b a b"]), torch.tensor([[2.0, 1, 1]]) / 6**0.5)
