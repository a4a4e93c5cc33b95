"""The command line `treadle`: verbs and their rendering.

Importing it loads click alone; a verb loads what it needs when it runs. Data goes to stdout, talk to stderr.
"""

from treadle.cli.root import main

__all__ = ["main"]
