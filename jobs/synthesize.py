"""What a cluster runs: `ray job submit -- python jobs/synthesize.py CONFIG --store s3://bucket/run [...]`.

The options and exit codes are those of `nisynth run`; its workers are actors on the cluster that runs it.
"""

import sys

from nisynth.cli import main

sys.argv[1:1] = ["run", "--executor", "ray", "--address", "auto"]
main()
