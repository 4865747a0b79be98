"""CLIP score and R@1 of rendered views: python evaluation/clipscore/compute.py --result_dir DIR --model FOLDER."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"compute.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.clip_score import main

        main()
