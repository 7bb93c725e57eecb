"""DeepInversion (CVPR-20): the pixels of a batch are optimized directly, under the losses of Eq. 2-4.

`config` lists its options and published settings, `pixels` is what is optimized. With a rival as a loss term
(`method.rival`) it is Adaptive DeepInversion. The published ImageNet recipe runs in two stages, half the size
first.
"""
