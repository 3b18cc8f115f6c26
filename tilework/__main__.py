"""`python -m tilework`: the command line."""

from tilework.main import main

main()
