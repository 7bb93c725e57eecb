"""NaturalInversion (AAAI-22): one generator per batch, features of the teacher, learned channel scales.

The defaults follow the published code, which made the published images; where the paper says otherwise
the difference is an option of `NaturalInversionConfig`, documented there. Where the paper is in the code:

| paper | code, below `nisynth` |
| --- | --- |
| Eq. 1: a loss and regularizers of an image | `synthesis.inversion.objective.losses` |
| Eq. 2: L_CE | `synthesis.inversion.priors.cross_entropy` |
| Eq. 3: R_BN | `synthesis.inversion.priors.feature_distribution` |
| Eq. 4: R_TV, R_l2 | `synthesis.inversion.priors.total_variation`, `synthesis.inversion.priors.l2` |
| Eq. 5, Table 7: the pyramid | `synthesis.naturalinversion.pyramid.FeatureTransferPyramid` |
| Eq. 6: alpha | `synthesis.naturalinversion.scaling.AdaptiveChannelScaling` |
| Eq. 7, Figure 1: the image | `synthesis.naturalinversion.renderer.Renderer` |
| Eq. 8: L_inv | `synthesis.inversion.objective.image_terms` |
| Algorithm 1, line by line | `synthesis.inversion.plain.PlainSynthesizer` |
| Algorithm 1, compiled | `synthesis.engine.loop.Inversion` |
| Table 6: the generator | `synthesis.naturalinversion.generator.Generator` |
| appendix: weights, rates, iterations | `synthesis.naturalinversion.config.PRESETS`, the defaults there |
| Figures 2, 3: images by method, of a batch | `report.preview.draw_methods`, `report.preview.draw_task` |
| Figures 4, 7: t-SNE | `evaluation.tsne.map_layers`, `report.maps.draw_maps` |
| Figure 5: losses by iteration | `report.curves.loss_terms`, `report.compare.loss_by_run` |
| Figure 6: pruning | `consumers.prune.prune`, `report.curves.pruning_curves` |
| Table 1: FID, IS, precision, recall; Table 8: by network | `evaluation.quality.measure_quality` |
| Tables 2, 9: students from scratch | `consumers.scratch.train_from_scratch` |
| Table 3: one-to-many, parts left out | `fitting.one_to_many.OneToMany`, the config's options |
| Table 4: fewer feature maps | `teacher.taps` of a run's config |
| Table 5: distillation | `consumers.distill.distill` |
"""
