"""The dictionary under other autoencoders: Table 6 of the paper of models/dcae.py.

    x ->[TCM's or ELIC's g_a]-> y -> the dictionary entropy model (models/dictionary.py) -> y_hat ->[their g_s]-> x_hat

The hyper-prior belongs to the entropy model and is DCAE's. ("ELIC+ours", ELIC's spatial-channel context with the
dictionary added, is in models/elic.py. FTIC's autoencoder, the third in the table, is in no library and left out.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressai.registry import register_model

from models import elic, tcm
from models.dictionary import DictionaryModel


@register_model("tcm-dictionary")
class TCMDictionary(DictionaryModel):
    """TCM's autoencoder, whose arguments stand first (defaults: the large one); the others are DictionaryModel's."""

    model_name = "tcm-dictionary"

    def __init__(
        self,
        N: int = 128,
        head_dims: Sequence[int] = (8, 16, 32),
        window: int = 8,
        hyper_channels: int = 192,
        **entropy_model: Any,
    ) -> None:
        super().__init__(hyper_channels, window, **entropy_model)
        self.g_a = tcm.analysis_transform(N, self.M, head_dims, window)
        self.g_s = tcm.synthesis_transform(N, self.M, head_dims, window)
        self.build_queries()
        self.build_entropy_model()


@register_model("elic-dictionary")
class ELICDictionary(DictionaryModel):
    """ELIC's autoencoder. N: its width; hyper_channels: of z; the others are DictionaryModel's."""

    model_name = "elic-dictionary"

    def __init__(self, N: int = 192, hyper_channels: int = 192, **entropy_model: Any) -> None:
        super().__init__(hyper_channels, 1, **entropy_model)
        self.g_a, self.g_s = elic.analysis_transform(N, self.M), elic.synthesis_transform(N, self.M)
        self.build_queries()
        self.build_entropy_model()
