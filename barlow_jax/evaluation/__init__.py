"""Judging a representation: what is judged, its features, and what is trained or counted on them."""
