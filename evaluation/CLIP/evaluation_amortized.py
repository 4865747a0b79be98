"""CLIP similarity and R@1 of test pictures: python evaluation/CLIP/evaluation_amortized.py --result_dir DIR."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"evaluation_amortized.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.amortized import main

        main()
