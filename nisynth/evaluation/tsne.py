"""Maps of features (Figures 4 and 7), and how well a 10-NN tells synthetic from real in the features."""

from dataclasses import dataclass

import numpy as np

from nisynth.evaluation.embedding import Features, Labels
from nisynth.evaluation.frechet import Array
from nisynth.evaluation.scores import extra

PERPLEXITY = 30.0
NEIGHBOURS = 10
FOLDS = 5
LEAST_POINTS = 10


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Equally many synthetic and real images of one layer, synthetic first.

    positions `(2n, 2)`. labels `(2n,)`. accuracy: balanced, of a 10-NN over 5 folds that tells the sets
    apart in the features, 0.5 where they are alike.
    """

    layer: str
    positions: Array
    labels: Labels
    accuracy: float

    @property
    def num_each(self) -> int:
        """Points of each set."""
        return len(self.labels) // 2


def map_layers(
    synthetic: Features, real: Features, layers: list[str], points: int, seed: int = 0, threads: int = 1
) -> list[FeatureMap]:
    """Returns a map per layer, of the same images. Equal bits for equal inputs with one thread.

    points: of each set, at most. Raises ConfigError without openTSNE or scikit-learn, ValueError for
    fewer than ten images in a set.
    """
    count = min(points, len(synthetic.labels), len(real.labels))
    if count < LEAST_POINTS:
        raise ValueError(f"{count} images in a set; a map needs at least {LEAST_POINTS}")
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.permutation(len(part.labels))[:count]) for part in (synthetic, real)]
    labels = np.concatenate([synthetic.labels[rows[0]], real.labels[rows[1]]])
    return [
        _map(
            layer,
            np.concatenate([synthetic.layers[layer][rows[0]], real.layers[layer][rows[1]]]),
            labels,
            seed,
            threads,
        )
        for layer in layers
    ]


def _map(layer: str, values: Array, labels: Labels, seed: int, threads: int) -> FeatureMap:
    both = values.astype(np.float64)
    fit = extra("openTSNE").TSNE(
        perplexity=min(PERPLEXITY, (len(both) - 1) / 3),
        initialization="pca",
        metric="euclidean",
        n_jobs=threads,
        random_state=seed,
    )
    return FeatureMap(layer, np.asarray(fit.fit(both)), labels, two_sample_accuracy(both))


def two_sample_accuracy(both: Array) -> float:
    """Returns the balanced accuracy, 0..1, of a 10-NN that tells the first half of the rows from the second.

    Raises ConfigError without scikit-learn.
    """
    is_real = np.arange(len(both)) >= len(both) // 2
    selection, neighbours = extra("sklearn.model_selection"), extra("sklearn.neighbors")
    folds = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    judge = neighbours.KNeighborsClassifier(min(NEIGHBOURS, len(both) // 2))
    scores = selection.cross_val_score(judge, both, is_real, cv=folds, scoring="balanced_accuracy")
    return float(scores.mean())
