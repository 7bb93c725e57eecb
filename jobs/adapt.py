"""What a cluster runs: `ray job submit -- python jobs/adapt.py CONFIG --store s3://bucket/series [...]`.

The options and exit codes are those of `nisynth adapt`; rounds and rivals run on the cluster that runs it.
"""

import sys

from nisynth.cli import main

sys.argv[1:1] = ["adapt", "--executor", "ray", "--address", "auto"]
main()
