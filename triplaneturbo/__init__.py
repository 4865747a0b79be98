"""Instant text-to-mesh generation trained without 3D data (progressive rendering distillation)."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # The pipeline pulls in diffusers and transformers; importing the package must stay cheap.
    if name == "TextToMeshPipeline":
        from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline

        return TextToMeshPipeline
    raise AttributeError(f"module 'triplaneturbo' has no attribute {name!r}")
