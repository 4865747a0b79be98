"""What trainings see: prompts, cameras, and endless streams of them."""

from triplaneturbo.data.cameras import CameraSampler
from triplaneturbo.data.prompts import PromptsAndCameras
from triplaneturbo.data.stream import StreamData

__all__ = ["CameraSampler", "PromptsAndCameras", "StreamData"]
