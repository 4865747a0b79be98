"""What is measured of scenes in tests, beside the pictures."""

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from triplaneturbo.base import Component
from triplaneturbo.scenes import Scene


class Measure(Component):
    """Numbers about the scene of one prompt; `system.measures: {NAME: {type: ...}}` has them written by `--test`."""

    role = "measure"

    @abstractmethod
    def __call__(self, scene: Scene, prompt: str, material: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """By name. material: turns the scene's features into colours."""
