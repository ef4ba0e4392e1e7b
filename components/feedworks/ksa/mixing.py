"""KSA (arXiv 2604.24432): what the stages of a run train on: windows or documents of text, and needle rows.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

from feedworks.ksa.config import KsaConfig
from feedworks.ksa.corpus import TokenFile
from feedworks.ksa.data import Source, Table, TextBatch
from feedworks.ksa.needles import Needle, training_rows
from feedworks.ksa.settings import StageConfig
from feedworks.ksa.stages import text_source


class Alternating:
    """Steps of one source, with those of another spread evenly between them.

    A needle row asks for a handful of tokens, a row of text for all of its own: in one batch, whose loss is a
    mean over tokens, the needles would hardly count.

    Args:
        main: most steps.
        other: rows of the same length.
        share: of the steps that are the other's.
    """

    def __init__(self, main: Source, other: Source, share: float) -> None:
        self._main, self._other, self._share = main, other, share

    def batch(self, step: int, size: int) -> TextBatch:
        """See `feedworks.ksa.data.Source`."""
        before = int(step * self._share)
        if int((step + 1) * self._share) > before:
            return self._other.batch(before, size)
        return self._main.batch(step - before, size)


def training_source(
    file: TokenFile, needles: list[Needle], stage: StageConfig, cfg: KsaConfig, chunk: int
) -> Source:
    """Return the training rows of a stage.

    Args:
        file: the training split.
        needles: to train on; those that a row cannot hold are left out.
        stage: row length, packing, seed.
        cfg: how many of the steps are needles'.
        chunk: k of the model.

    Raises:
        ConfigError: packed rows are not of whole chunks.
        DataError: the text does not fill a row.
    """
    text = text_source(file, stage, chunk)
    fitting = [each for each in needles if each.length <= stage.seq_len]
    if not cfg.needles.train_share or not fitting:
        return text
    rows = training_rows(fitting, seq_len=stage.seq_len, end_id=file.end_id)
    return Alternating(text, Table(*rows, seed=stage.training.seed), cfg.needles.train_share)
