"""``python -m tunesmith``: the command line where no script of that name is on the path."""

from tunesmith.cli import main

main()
