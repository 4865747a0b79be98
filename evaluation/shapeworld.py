"""The miniature world's benchmark: python evaluation/shapeworld.py --weights FILE --json FILE."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from triplaneturbo.interruption import stoppable

    with stoppable():
        from evaluation.benchmark import main

        main()
