"""Numbers of evaluations: their lines, the rules behind their names, the paper's, and the page that shows all."""

from barlow_jax.results.lines import FILE, append, cells, commanded, line, newest, number, read

__all__ = ["FILE", "append", "cells", "commanded", "line", "newest", "number", "read"]
