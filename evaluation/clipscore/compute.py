"""CLIP score and R@1 of rendered views: python evaluation/clipscore/compute.py --result_dir DIR --model FOLDER."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from triplaneturbo.interruption import stoppable

    with stoppable():
        from evaluation.clip_score import main

        main()
