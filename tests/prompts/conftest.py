"""Tiny text encoders in diffusers folders."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH, WIDTH = 6, 16
VOCABULARY = ["<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(f"{letter}</w>" for letter in "abcdefgh")]


def write_encoder(folder: Path, seed: int) -> str:
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(VOCABULARY)}, merges=[], model_max_length=LENGTH)
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return str(folder)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two folders with the same words and different models."""
    root = tmp_path_factory.mktemp("encoders")
    return write_encoder(root / "first", 0), write_encoder(root / "second", 1)
