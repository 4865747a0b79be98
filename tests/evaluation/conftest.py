import json

import pytest
import torch

from custom.shapeworld.models import IMAGE_PROCESSOR, build_scorer, build_tokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP model of the miniature world with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build_scorer(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR))
    return folder
