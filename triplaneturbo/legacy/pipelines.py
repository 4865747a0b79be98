"""Folders of earlier pipelines."""

from collections.abc import Iterable, Mapping

from triplaneturbo.legacy.state_dicts import is_original
from triplaneturbo.legacy.translate import Translator
from triplaneturbo.legacy.trees import put
from triplaneturbo.storage import Json, Tree


def translate_pipeline(content: Json) -> Json:
    """The content of a pipeline.json that this project's first version wrote in our names; any other as it is."""
    geometry = content.get("geometry") if isinstance(content, Mapping) else None
    if not isinstance(geometry, Mapping) or not ({"space_generator_config", "compat"} & geometry.keys()):
        return content
    translator = Translator()
    own = translator.component("geometry", "few-step-triplane-dual-stable-diffusion", geometry, "geometry")
    del own["type"]
    if translator.compat.get("geometry") == "original":
        put(own, "field.deformation_unit", "cell")
    material = translator.component("material", "no-material", content.get("material") or {}, "material")
    del material["type"]
    kept = {key: value for key, value in content.items() if key != "compat"}
    return kept | {"geometry": own, "material": material, "keep_end_token": content.get("compat") != "original"}


def suited(geometry: Tree, names: Iterable[str]) -> Tree:
    """The options of a geometry as the tensors of a file need them: those of the original say the deformation in cells
    of whatever grid is in use."""
    if not is_original(names):
        return geometry
    return {**geometry, "field": {**(geometry.get("field") or {}), "deformation_unit": "cell"}}
