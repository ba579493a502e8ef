"""Untrained ways to compare functions, for the figures beside a model's.

In go view texts (`corpus_builder.asm.view`), out come sparse unit vectors whose dot product is a cosine.
TF-IDF weights are fitted on the very texts that are compared, which favours the baselines. Thousands of
functions a second on one core.
"""

import re
from collections.abc import Callable, Sequence

from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.preprocessing import normalize

_CONSTANT = re.compile(r"(?<![\w.])-?(?:0x[0-9a-f]+|\d+)(?![\w.])")


def opcodes(view: str) -> list[str]:
    """The mnemonics of a view, in order."""
    return [line.split(" ", 1)[0] for line in view.splitlines() if line and not line.endswith(":")]


def constants(view: str) -> list[str]:
    """The numbers of a view, offsets included, in order."""
    return _CONSTANT.findall(view)


def opcode_histogram(views: Sequence[str]) -> csr_matrix:
    """Counts of mnemonics."""
    counts = CountVectorizer(analyzer=opcodes).fit_transform(views)
    return normalize(counts.astype("float64"))


def opcode_tfidf(views: Sequence[str]) -> csr_matrix:
    """TF-IDF of three mnemonics in a row."""

    def trigrams(view: str) -> list[str]:
        names = opcodes(view)
        return [" ".join(names[at : at + 3]) for at in range(len(names) - 2)]

    return TfidfVectorizer(analyzer=trigrams, sublinear_tf=True).fit_transform(views)


def constants_tfidf(views: Sequence[str]) -> csr_matrix:
    """TF-IDF of the numbers alone: the strongest simple signal between -O levels."""
    if not any(constants(view) for view in views):
        return csr_matrix((len(views), 1))
    return TfidfVectorizer(analyzer=constants, sublinear_tf=True).fit_transform(views)


BASELINES: dict[str, Callable[[Sequence[str]], csr_matrix]] = {
    "opcode_histogram": opcode_histogram,
    "opcode_tfidf": opcode_tfidf,
    "constants_tfidf": constants_tfidf,
}
