"""What a cluster runs: `ray job submit --entrypoint-num-gpus 1 -- python jobs/evaluate.py [...]`.

The options are those of `nisynth evaluate`; it takes the one GPU that the job is given.
"""

import sys

from nisynth.cli import main

sys.argv.insert(1, "evaluate")
main()
