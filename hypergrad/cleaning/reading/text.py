"""Texts: weighted counts of their words, or whatever a module makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from hypergrad.cleaning.reading.memory import check_fits
from hypergrad.cleaning.reading.packages import require
from hypergrad.cleaning.reading.source import Rows
from hypergrad.errors import InputError

BATCH = 256
SHOWN = 2000
"""Characters of a preview."""
RARE = 50
"""Texts from which on a word has to occur in two of them."""


@final
@dataclass(frozen=True)
class Texts:
    """Texts as features."""

    texts: list[str]
    vocabulary: int
    embed: Callable[[list[str]], Any] | None = None

    def fit(self, rows: Rows) -> tuple[Callable[[Texts, Rows], Tensor], tuple[str, ...]]:
        """Return the encoder that these rows call for, and remarks on it."""
        if self.embed is not None:
            return Embedded(self.embed), ()
        library = require("sklearn.feature_extraction.text", "a text column")
        vectorizer = library.TfidfVectorizer(
            max_features=self.vocabulary,
            min_df=2 if len(rows) >= RARE else 1,
            sublinear_tf=True,
            strip_accents="unicode",
            dtype=np.float32,
        )
        try:
            vectorizer.fit([self.texts[row] for row in rows])
        except ValueError as error:  # an empty vocabulary
            raise InputError(
                passed=f"{len(rows):,} texts, of which none has a word that can be counted ({error})",
                expected="texts with words of at least two letters, that occur in several texts",
                do="check which column holds the text, or hand over embed=",
            ) from error
        width = len(vectorizer.vocabulary_)
        do = f"lower vocabulary= (--vocabulary), which is {self.vocabulary:,}"
        check_fits(f"{len(self.texts):,} texts with {width:,} words each", 12 * len(self.texts) * width, do)
        remark = f"the {width:,} most frequent words are counted (tf-idf; --vocabulary)"
        return Counted(vectorizer), (remark,)

    def take(self, rows: Rows) -> Texts:
        """Return the texts of some rows."""
        return replace(self, texts=[self.texts[row] for row in rows])

    def show(self, row: int) -> dict[str, Any]:
        """Return the beginning of a text."""
        return {"text": self.texts[row].encode("utf-8", "replace").decode()[:SHOWN]}


@final
@dataclass(frozen=True)
class Counted:
    """Encodes texts as weighted counts of words."""

    vectorizer: Any

    def __call__(self, features: Texts, rows: Rows) -> Tensor:
        """Return the inputs of some rows, of shape (rows, words)."""
        inputs = np.empty((len(rows), len(self.vectorizer.vocabulary_)), np.float32)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            inputs[start : start + len(part)] = self.vectorizer.transform(
                [features.texts[row] for row in part]
            ).toarray()
        return torch.from_numpy(inputs)


@final
@dataclass(frozen=True)
class Embedded:
    """Encodes texts by a function or module that was handed over."""

    embed: Callable[[list[str]], Any]

    @torch.no_grad()
    def __call__(self, features: Texts, rows: Rows) -> Tensor:
        """Return the inputs of some rows."""
        training = (
            [module for module in self.embed.modules() if module.training] if isinstance(self.embed, nn.Module) else []
        )
        try:
            for module in training:
                module.training = False
            parts = [
                self._part([features.texts[row] for row in rows[start : start + BATCH]])
                for start in range(0, len(rows), BATCH)
            ]
        finally:
            for module in training:
                module.training = True
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def _part(self, texts: list[str]) -> Tensor:
        found = torch.as_tensor(self.embed(texts))
        if found.ndim < 2 or len(found) != len(texts) or not found.is_floating_point():
            raise InputError(
                passed=f"embed, which made {found.dtype} of shape {tuple(found.shape)} of {len(texts)} texts",
                expected=f"floating-point numbers of shape ({len(texts)}, …), one row for each text",
                do="return one vector for each text of the list",
            )
        return found.detach().float().cpu()
