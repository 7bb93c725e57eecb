"""What the files that other trainings left say of the images that they were trained on."""

import json
import math
from collections.abc import Mapping

from nisynth.images import Normalization


def differing_normalization(metadata: Mapping[str, str], own: Normalization) -> str | None:
    """Returns how a file's stated mean or std differs from the teacher's, None where it does not.

    A file that states neither is taken to be made for the teacher's.
    """
    for name, wanted in (("mean", own.mean), ("std", own.std)):
        stated = metadata.get(name)
        if stated is None:
            continue
        try:
            values = [float(value) for value in json.loads(stated)]
        except (TypeError, ValueError):
            values = []
        same = len(values) == len(wanted) and all(
            math.isclose(a, b, abs_tol=1e-4) for a, b in zip(values, wanted, strict=True)
        )
        if not same:
            return f"{name} {stated}, the teacher with {list(wanted)}"
    return None
