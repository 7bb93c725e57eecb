"""Trainings that leave an artefact which a run starts from: a generator, fitted once and then sampled."""

from nisynth.fitting.one_to_many import FitConfig, FitReport, fit

__all__ = ["FitConfig", "FitReport", "fit"]
