"""The library in which dotted captions come more often."""

import json
from collections import Counter

from custom.shapeworld import often
from custom.shapeworld.splits import student_captions
from triplaneturbo.data.library import PromptLibrary


def test_every_caption_of_the_student_is_there_and_dotted_ones_more_often(tmp_path):
    often.main([str(tmp_path / "dots_prompt_library.json")])
    library = PromptLibrary.read("dots_prompt_library", str(tmp_path))
    counts = Counter(library.train)
    assert set(counts) == set(student_captions())
    assert counts["a dotted red sphere"] == 8
    assert counts["a red sphere"] == 1
    assert {counts[c] for c in counts if "dotted" in c and (" on " in c or " beside " in c or " under " in c)} == {2}
    assert sum(times == 8 for times in counts.values()) == 330
    assert len(json.loads((tmp_path / "dots_prompt_library.json").read_text())["val"]) == 8
