"""The compiled loop: the plain loop's mathematics at the speed of the machine, for any inversion method.

`fast` runs tasks in a `loop.Inversion`; `fused`, `activations` and `normalization` are the frozen teacher;
`statistics` is R_BN; `precision` the arithmetic; `capture` compiler and CUDA graph; `shortcuts` names each.
A method's own exact rewrites live with the method.
"""
