"""What a set of images is made of, and how it is to be read: `barlow-jax data stats`.

of_image.py  what is found in one image
of_set.py    and in all of them: `measure`, which goes through a source
said.py      what follows from it, and the lines for a person
"""

from barlow_jax.data.stats.of_set import Stats as Stats
from barlow_jax.data.stats.of_set import copies as copies
from barlow_jax.data.stats.of_set import measure as measure
from barlow_jax.data.stats.of_set import moments as moments
from barlow_jax.data.stats.of_set import percentiles as percentiles
from barlow_jax.data.stats.said import RANGE as RANGE
from barlow_jax.data.stats.said import lines as lines
from barlow_jax.data.stats.said import rendered as rendered
from barlow_jax.data.stats.said import value_range as value_range
