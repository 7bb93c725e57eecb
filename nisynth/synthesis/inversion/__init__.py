"""What inversion methods share: the loop, its loss terms, jitter, and which iterate becomes the result.

A method is an `ImageModel` (what is optimized, and the images it makes) and an `InversionConfig` (weights,
iterations, jitter). `plain` is Algorithm 1 over any of them; `nisynth.synthesis.engine` is the same loop,
compiled.
"""
