"""Web pages: what a server of ours answers, and to whom."""
