"""The environment map."""

import pytest
from formula_weights import formula
from golden_case import Case
from torch import Tensor, nn
from workbench import Workbench, translated

from triplaneturbo.background.hashgrid_environment import HashGridEnvironment

# Every so many-th column of the first matrix is recorded.
_COLUMNS = 8


class RecordedEncoding(nn.Module):
    """In the place of the hash grid."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, points: Tensor) -> Tensor:
        self.case.close("encoding_input", points, 2e-5)
        return self.case["encoding_output"]


def background(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        **case.options("encoding_dims", "state_keys"),
        "pos_encoding_config": _encoding(case.meta["encoding_dims"]),
    }
    name = "multi-prompt-neural-hashgrid-environment-map-background"
    block = translated({"background_type": name, "background": options})["system"]["background"]
    del block["type"]
    environment = HashGridEnvironment(block)
    state = environment.state_dict()
    case.require("state_keys", case.meta["state_keys"].keys() == {k for k in state if k.startswith("hypernet.")})
    for key, shape in case.meta["state_keys"].items():
        case.require(f"shape of {key}", list(state[key].shape) == shape)
        state[key] = formula(key, shape)
    environment.load_state_dict(state)
    environment.encoding = RecordedEncoding(case)
    directions, text = case["dirs"], case["text_embed_global"]
    case.close("color", environment.train()(directions, text), 2e-5)
    first, *others = environment.layer_weights(text)
    case.close("w0_sub", first[..., ::_COLUMNS], 2e-5)
    for i, weight in enumerate(others, start=1):
        case.close(f"w{i}", weight, 2e-5)
    case.close("eval_color", environment.eval()(directions, text), 2e-5)


def _encoding(width: int) -> dict[str, int]:
    """Any hash grid of that many features: it is not used."""
    return {"n_levels": width, "n_features_per_level": 1, "log2_hashmap_size": 4}
