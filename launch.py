"""Train, check or export: `python launch.py --config configs/shapeworld/prd.yaml --train data.batch_size=8`."""

import sys

from triplaneturbo.cli import launch as main
from triplaneturbo.interruption import stoppable

if __name__ == "__main__":
    with stoppable():
        sys.exit(main())
