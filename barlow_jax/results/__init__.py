"""Numbers of evaluations: their lines, the rules behind their names, the paper's, and the page that shows all."""

from barlow_jax.results.lines import FILE, append, commanded, line, read

__all__ = ["FILE", "append", "commanded", "line", "read"]
