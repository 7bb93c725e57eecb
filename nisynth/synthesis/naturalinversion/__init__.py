"""NaturalInversion (AAAI-22): one generator per batch, features of the teacher, learned channel scales.

The defaults follow the published code, which made the published images; where the paper says otherwise
the difference is an option of `NaturalInversionConfig`, documented there. Where the paper is in the code:

| paper | code |
| --- | --- |
| Eq. 1 (the optimization over images), Eq. 2 (L_CE), Eq. 3 (R_BN), Eq. 4 (R_TV, R_l2) | `inversion.priors` |
| Eq. 5, Table 7: Feature Transfer Pyramid | `pyramid.FeatureTransferPyramid` |
| Eq. 6-7: Adaptive Channel Scaling, and the joined image | `scaling`, `pyramid.join`, `renderer` |
| Eq. 8: L_inv, and Algorithm 1, line 9 | `inversion.objective` |
| Algorithm 1 | `inversion.plain`, line by line; `engine.loop`, compiled |
| Table 6: the generator G(z|y) | `generator.Generator` |
| Tables 1, 2, 5, 9 and the appendix: weights, rates, iterations | `config.PRESETS` |
| Table 4: fewer pyramid blocks | `teacher.taps` of the run's config |
| Figure 5: loss curves | `inversion.curve`, in every commit |
"""
