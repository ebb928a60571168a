"""The steps of benchmarks/gpu.py, a module for each thing that is measured; `steps` lists, `record` keeps them."""
