"""A series: several runs that are one set, the rounds of an adaptive synthesis.

Round r is a run of its own under `<url>/rounds/<r>/` whose rival was distilled from all rounds before it, by
a training of its own under `<url>/rivals/<r>/`.

plan.py       the sizes of the rounds, and the plan of the whole: `series.json`
run.py        a series read as one run: tasks numbered over all rounds; `open_run` opens either
rivals.py     the rivals' files, named by the hash of their weights, and what they were distilled from
pull.py       a verified local copy
config.py     the recipe: a run's config, the rounds, how rivals are distilled
conductor.py  `adapt`: looks at what is stored and takes the next step
"""
