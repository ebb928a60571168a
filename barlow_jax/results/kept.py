"""The page in a run's work folder, written anew at every evaluation, whole or not at all; no run ends because of it.

page = kept.Page(workdir, start_step)     # and a line of starts.jsonl
...
page.write()
"""

import contextlib
import logging
import pathlib

import jax

from barlow_jax.results import page, starts
from barlow_jax.run import writing

FILE = "report.html"

log = logging.getLogger(__name__)


class Page:
    """On process 0 it writes FILE in the work folder; what fails is said once, and the run goes on.

    Args:
      workdir: of the run; step: at which it starts, or goes on.
    """

    def __init__(self, workdir, step):
        self._workdir, self._told = pathlib.Path(workdir), False
        with self._spared():
            if jax.process_index() == 0:
                starts.record(self._workdir, step)

    def write(self):
        """Writes what the folder has now."""
        with self._spared():
            if jax.process_index() == 0:
                writing.text(self._workdir / FILE, page.page([self._workdir]))

    @contextlib.contextmanager
    def _spared(self):
        """Whatever goes wrong here, as on a full disk, is for nobody's training to end on."""
        try:
            yield
        except Exception as error:
            if not self._told:
                log.warning("%s is not kept up to date: %s", self._workdir / FILE, error)
            self._told = True
