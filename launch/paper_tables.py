"""Tables 4, 9 and 10 of the paper, to stand beside what is measured here.

Source: M. Asgari-Chenaghlu, M. R. Feizi-Derakhshi, L. Farzinvash, M. A. Balafar, C. Motamed, "A multimodal deep
learning approach for named entity recognition from social media" (preprint). Test set of TMN, the text of
Twitter-2015. The paper names no scoring convention; its Table 3 counts entities by their ``B-`` tags.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Asgari-Chenaghlu et al., Table 4"

TEST_TWEETS = 3257
"""Tweets in the test split that the table is about; another count means other data."""


@dataclass(frozen=True)
class PaperRow:
    """One row of a table, in percent: F1 by type, then the overall precision, recall and F1. Tables 9 and 10 give F1 alone."""

    system: str
    per: float
    loc: float
    org: float
    misc: float
    precision: float | None
    recall: float | None
    f1: float
    note: str = ""

    @property
    def by_type(self) -> dict[str, float]:
        """F1 in percent by entity type."""
        return {"PER": self.per, "LOC": self.loc, "ORG": self.org, "MISC": self.misc}


MASKED = ", image side masked"
"""Stands behind the name of a system that could see images, and was run on text alone."""

MSB_SMALL_NOTE = "the printed P 72.89 and R 70.10 give F1 71.47, not the printed 72.74"

TABLE_4 = (
    PaperRow("Stanford NER", 73.85, 69.35, 41.81, 21.80, 60.98, 62.00, 61.48),
    PaperRow("BiLSTM+CRF", 76.77, 72.56, 41.33, 26.80, 68.14, 61.09, 64.42),
    PaperRow("LSTM+CNN+CRF", 80.86, 75.39, 47.77, 32.61, 66.24, 68.09, 67.15),
    PaperRow("T-NER", 83.64, 76.18, 50.26, 34.56, 69.54, 68.65, 69.09),
    PaperRow("BiLSTM+CNN+Co-Attention", 81.89, 78.95, 53.07, 34.02, 72.75, 68.74, 70.69),
    PaperRow("CWI", 85.81, 76.68, 50.18, 35.65, 73.64, 69.68, 71.61),
    PaperRow("CWI + Attention", 84.02, 77.34, 52.60, 33.47, 72.37, 70.05, 71.19),
    PaperRow("MSB-Tiny", 82.17, 76.47, 51.09, 34.31, 71.08, 69.75, 70.41),
    PaperRow("MSB-Small", 86.32, 74.36, 50.73, 35.12, 72.89, 70.10, 72.74, MSB_SMALL_NOTE),
    PaperRow("MSB-Tiny + CRF", 84.21, 75.16, 52.89, 35.31, 72.87, 69.41, 71.10),
    PaperRow("MSB-Small + CRF", 86.44, 77.16, 52.91, 36.05, 74.97, 72.04, 73.47),
)

TABLE_9 = {
    350: PaperRow("CWI, word vectors of 350", 81.08, 72.60, 49.41, 34.03, None, None, 69.87),
    400: PaperRow("CWI, word vectors of 400", 83.12, 74.37, 51.87, 34.29, None, None, 70.23),
    500: PaperRow("CWI, word vectors of 500", 85.81, 76.68, 50.18, 35.65, None, None, 71.61),
    600: PaperRow("CWI, word vectors of 600", 84.29, 75.92, 47.81, 38.71, None, None, 70.98),
}
"""By the width of CWI's word vectors, GloVe's and fastText's together."""

TABLE_10 = {
    False: PaperRow("CWI without TD+GN+SineReLU", 76.21, 72.30, 40.98, 28.81, None, None, 64.18),
    True: PaperRow("CWI with TD+GN+SineReLU", 85.81, 76.68, 50.18, 35.65, None, None, 71.61),
}
"""By whether CWI has targeted dropout, group normalisation and SineReLU."""

TABLES = {"table4": TABLE_4, "table9": tuple(TABLE_9.values()), "table10": tuple(TABLE_10.values())}

ENCODER_SIZES = {(2, 128): "MSB-Tiny", (4, 512): "MSB-Small", (4, 384): "MSB-Small"}
"""(layers, hidden size) to the paper's name. Table 2 has 2 x 128 and 4 x 512; 4 x 384 stands in for the latter."""


def msb_system(layers: int, hidden_size: int, head: str) -> str:
    """Name of an MSB with an encoder of this size and this head ("softmax" or "crf"): Table 4's, or after its size.

    >>> msb_system(2, 128, "crf"), msb_system(6, 384, "softmax")
    ('MSB-Tiny + CRF', 'MSB 6 x 384')
    """
    name = ENCODER_SIZES.get((layers, hidden_size), f"MSB {layers} x {hidden_size}")
    return f"{name} + CRF" if head == "crf" else name


def table_4_row(system: str) -> PaperRow | None:
    """The row of Table 4 of a system by its name there; "… style" and `MASKED` are no part of it."""
    name = system.removesuffix(" style").removesuffix(MASKED)
    return next((row for row in TABLE_4 if row.system == name), None)
