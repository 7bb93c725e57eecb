"""Trainings that leave a generator, which a run then samples (`method: sampling`).

fit.py           the loop of every fit: checkpoints, curve, what is left at the URL
methods.py       the table of fits, by `method.name`
with_student.py  what dafl.py and dfad.py share: a generator against a student
critics.py       the critics of wgan_gp.py
"""

from nisynth.fitting.fit import FitConfig, FitReport
from nisynth.fitting.methods import FITS, fit, load_fit_config

__all__ = ["FITS", "FitConfig", "FitReport", "fit", "load_fit_config"]
