"""`python -m nisynth VERB ...`: the command line where only the package is there, as in a submitted job."""

from nisynth.cli import main

main()
