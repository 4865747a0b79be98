"""A web page that turns a prompt into a mesh: `python gradio_app.py`, then open the address that it prints."""

import sys

from triplaneturbo.cli import serve
from triplaneturbo.interruption import stoppable

if __name__ == "__main__":
    with stoppable():
        sys.exit(serve(sys.argv[1:], "gradio_app.py"))
