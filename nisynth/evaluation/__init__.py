"""How good a set is: figures between synthetic and real images, each with what it was measured on.

frechet.py     the Frechet distance of two sets of features
manifold.py    k-NN precision, recall, density, coverage; nearest neighbours; near duplicates
scores.py      Inception score, KID, CMMD, C_T, Sajjadi's precision-recall curve, calibration
networks.py    a network's layers as features
published.py   the networks by name, and where their weights are looked for; dinov2.py: one of them
embedding.py   a network and images -> features, once per (set, network, layer)
figures.py     every figure between two sets, and its floor
pixels.py      what the pixels alone say
quality.py     all of it for one set, in one frozen result
tsne.py        maps of features, and how well a 10-NN tells the two sets apart

Functions on arrays take `(N, d)`, real or synthetic, and compute in float64. The Frechet distance,
manifold.py, CMMD and calibration need numpy alone; the rest of scores.py and tsne.py need the extra
`evaluation`.
"""
