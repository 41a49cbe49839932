"""`python -m cytoglot` is the command `cytoglot`, for launchers that start a module."""

from cytoglot.cli.main import main

main()
