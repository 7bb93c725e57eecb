"""What a cluster runs: `ray job submit -- python jobs/distill.py CONFIG --data URL --output URL [...]`.

The options are those of `nisynth distill`; in a job, several workers join the cluster that runs it.
"""

import sys

from nisynth.cli import main

sys.argv.insert(1, "distill")
main()
