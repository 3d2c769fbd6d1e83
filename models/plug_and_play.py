"""The dictionary entropy model under other autoencoders: Table 6 of the paper of models/dcae.py.

    x -> g_a of TCM or ELIC -> y -> the dictionary entropy model (models/dictionary.py) -> y_hat -> their g_s -> x_hat

The hyper-prior belongs to the entropy model and is DCAE's. ("ELIC+ours", ELIC's spatial-channel context with the
dictionary added, is in models/elic.py. The table's third autoencoder, FTIC's, is left out: no library has it.)
"""

from __future__ import annotations

from collections.abc import Sequence

from models import elic, tcm
from models.base import recorded
from models.dictionary import DictionaryModel


class TCMDictionary(DictionaryModel):
    """TCM's autoencoder (defaults: the large one). N: width of a branch of its mixture blocks; the rest as in DCAE."""

    model_name = "tcm-dictionary"

    def __init__(
        self,
        N: int = 128,
        M: int = 320,
        hyper_channels: int = 192,
        head_dims: Sequence[int] = (8, 16, 32),
        window: int = 8,
        hyper_head_dim: int = 32,
        hyper_window: int = 4,
        slices: int = 5,
        hidden: Sequence[int] = (224, 128),
        dictionary_entries: int = 128,
        dictionary_heads: int = 20,
        dictionary_head_dim: int = 32,
        msfa: int = 3,
        variable_rate: bool = False,
    ) -> None:
        super().__init__(recorded(locals()), M, hyper_channels, slices, (window, hyper_window), variable_rate)
        self.g_a = tcm.analysis_transform(N, M, head_dims, window)
        self.g_s = tcm.synthesis_transform(N, M, head_dims, window)
        self.build_dictionary(self.query_channels, dictionary_entries, dictionary_heads, dictionary_head_dim, msfa)
        self.build_entropy_model(hyper_head_dim, hyper_window, hidden)


class ELICDictionary(DictionaryModel):
    """ELIC's autoencoder. N: its width; the rest as in DCAE."""

    model_name = "elic-dictionary"

    def __init__(
        self,
        N: int = 192,
        M: int = 320,
        hyper_channels: int = 192,
        hyper_head_dim: int = 32,
        hyper_window: int = 4,
        slices: int = 5,
        hidden: Sequence[int] = (224, 128),
        dictionary_entries: int = 128,
        dictionary_heads: int = 20,
        dictionary_head_dim: int = 32,
        msfa: int = 3,
        variable_rate: bool = False,
    ) -> None:
        super().__init__(recorded(locals()), M, hyper_channels, slices, (1, hyper_window), variable_rate)
        self.g_a, self.g_s = elic.analysis_transform(N, M), elic.synthesis_transform(N, M)
        self.build_dictionary(self.query_channels, dictionary_entries, dictionary_heads, dictionary_head_dim, msfa)
        self.build_entropy_model(hyper_head_dim, hyper_window, hidden)
