"""How far decoded sound is from the original, as the ear has it.

Shape letters: B recording, N sample, F frequency, M mel band, T spectral frame.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

_SCALES: Final = ((256, 32), (512, 48), (1024, 64), (2048, 80))  # window, mel bands
_FLOOR: Final = 1e-3  # of magnitudes; a rest of -60 dB counts as silence
_LINEAR_WINDOW: Final = 1024


def spectral_loss(decoded_BN: Tensor, original_BN: Tensor, sample_rate: int) -> Tensor:
    """L1 of log-mel spectra at four resolutions, and of a linear log spectrum, averaged."""
    total = decoded_BN.new_zeros(())
    for window, num_bands in _SCALES:
        spectrum_D = _magnitudes(decoded_BN, window)
        spectrum_O = _magnitudes(original_BN, window)
        bank = _bank(window, num_bands, sample_rate, decoded_BN.device)
        total = total + F.l1_loss(_log(bank @ spectrum_D), _log(bank @ spectrum_O))
        if window == _LINEAR_WINDOW:
            total = total + 0.5 * F.l1_loss(_log(spectrum_D), _log(spectrum_O))
    return total / len(_SCALES)


def mel_distance(decoded_BN: Tensor, original_BN: Tensor, sample_rate: int) -> float:
    """Mean absolute difference of 80-band log-mel spectra, in dB."""
    window, num_bands = _SCALES[-1]
    bank = _bank(window, num_bands, sample_rate, decoded_BN.device)
    logs = [_log(bank @ _magnitudes(x, window)) for x in (decoded_BN, original_BN)]
    return float((logs[0] - logs[1]).abs().mean()) * 20 / float(torch.tensor(10.0).log())


def _log(x: Tensor) -> Tensor:
    return torch.log(x + _FLOOR)


def _magnitudes(x_BN: Tensor, window: int) -> Tensor:
    """Magnitude spectra ``[B, F, T]``, a full-scale sine near 1."""
    spectrum = torch.stft(
        x_BN,
        window,
        window // 4,
        window=_hann(window, x_BN.device),
        center=True,
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.sqrt(power + 1e-9) * (4.0 / window)


@lru_cache(maxsize=8)
def _hann(window: int, device: torch.device) -> Tensor:
    return torch.hann_window(window, device=device)


@lru_cache(maxsize=8)
def _bank(window: int, num_bands: int, sample_rate: int, device: torch.device) -> Tensor:
    return mel_bank(window, num_bands, sample_rate).to(device)


def mel_bank(window: int, num_bands: int, sample_rate: int) -> Tensor:
    """Triangular mel filters ``[M, F]``; each band sums to 1, empty ones take the nearest bin."""
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), num_bands + 2) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp(min=0)
    nearest = (bins - edges[1:-1, None]).abs().argmin(1)
    empty = bank.sum(1) == 0
    bank[empty, nearest[empty]] = 1.0
    return bank / bank.sum(1, keepdim=True)
