"""Small programs spend their time in the compiler: how to spend less."""

import functools

import jax

QUICK = {"xla_backend_optimization_level": 0}  # LLVM optimises for longer than such a program runs
quickly = functools.partial(jax.jit, compiler_options=QUICK)
