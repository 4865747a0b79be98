"""The miniature world's benchmark: python evaluation/shapeworld.py --weights FILE --json FILE."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"shapeworld.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.benchmark import main

        main()
