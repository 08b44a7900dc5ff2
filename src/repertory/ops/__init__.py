"""Functions on tensors, without parameters, importing torch only; each has a plain ``reference`` and fast paths."""
