"""``python -m contextwindow``."""

from contextwindow.cli import main

main()
