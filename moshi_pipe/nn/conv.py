"""Causal streaming convolutions, time-major, each as one matrix product.

Activations are ``[B, T, C]``: a window of the input is then one contiguous run of memory, so a
convolution is a product of strided windows with a ``[O, k * C]`` matrix, and a transposed
convolution is a product followed by one overlap-add. Weights are stored as released
(``[out, in, k]`` and ``[in, out, k]``); :meth:`prepare` turns them into matrices after loading.

Shape letters: B slot, T time step, C channel in, O channel out, P left context in steps.

Source of the padding rules: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/conv.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from moshi_pipe.nn.huge_pages import HugePages
from moshi_pipe.nn.linear import project

if TYPE_CHECKING:
    from torch import Tensor


class CausalConv(nn.Module):
    """Convolution that sees its past only.

    Args:
        in_channels: ``C``.
        out_channels: ``O``.
        kernel_size: Taps.
        stride: Input steps per output step.
        dilation: Distance between taps.
        bias: Whether there is one.
        replicate: Fill the past of a fresh slot with its first step instead of zeros.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.replicate = replicate
        self.context = (kernel_size - 1) * dilation + 1 - stride  # P
        self._matrix: Tensor | None = None

    def prepare(self, memory: HugePages) -> None:
        """Derive the matrix form; call once after the weights were loaded."""
        weight_OCk = self.weight.detach()
        self._matrix = memory.keep(weight_OCk.permute(0, 2, 1).flatten(1))
        self.weight = nn.Parameter(weight_OCk.new_empty(0), requires_grad=False)

    def new_state(self, num_slots: int) -> Tensor:
        """Zeroed left context, float32 ``[B, P, C]``."""
        matrix = self._prepared()
        return matrix.new_zeros(num_slots, self.context, self.in_channels)

    def step(
        self,
        x_BTC: Tensor,
        previous_BPC: Tensor,
        keep_B11: Tensor | None,
        fresh_B11: Tensor | None = None,
    ) -> Tensor:
        """Convolve ``T`` new steps, ``T`` a multiple of the stride.

        Args:
            x_BTC: Input.
            previous_BPC: Left context, updated in place.
            keep_B11: Slots that advance, bool; None when all do.
            fresh_B11: Slots whose past is empty; used with ``replicate`` only.

        Returns:
            ``[B, T / stride, O]``.
        """
        matrix = self._prepared()
        batch, num_steps, channels = x_BTC.shape
        context = self.context
        if context:
            past = previous_BPC[:batch]
            if self.replicate and fresh_B11 is not None:
                past = torch.where(fresh_B11, x_BTC[:, :1], past)
            x_BTC = torch.cat([past, x_BTC], dim=1)
            _store(previous_BPC[:batch], x_BTC[:, num_steps:], keep_B11)
        if self.kernel_size == 1:
            return project(x_BTC, matrix, self.bias)
        x_BTC = x_BTC.contiguous()
        windows = x_BTC.as_strided(
            (batch, num_steps // self.stride, self.kernel_size, channels),
            (x_BTC.stride(0), self.stride * channels, self.dilation * channels, 1),
        )
        return project(windows.flatten(2), matrix, self.bias)

    def _prepared(self) -> Tensor:
        if self._matrix is None:
            self.prepare(HugePages())
        matrix = self._matrix
        if matrix is None:
            raise RuntimeError("prepare() left no matrix")
        return matrix


class CausalConvTranspose(nn.Module):
    """Transposed convolution whose overlap with the next frame is carried in the state.

    The kernel must be twice the stride, which holds for every transposed convolution in Mimi:
    each output step is then the sum of two products.

    Args:
        in_channels: ``C``.
        out_channels: ``O``.
        stride: Output steps per input step.
        channel_wise: One filter per channel (``O = C``) and no bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, channel_wise: bool = False
    ) -> None:
        super().__init__()
        rows = 1 if channel_wise else out_channels
        self.weight = nn.Parameter(torch.empty(in_channels, rows, 2 * stride))
        self.bias = None if channel_wise else nn.Parameter(torch.empty(out_channels))
        self.out_channels = out_channels
        self.stride = stride
        self.channel_wise = channel_wise
        self._matrix: Tensor | None = None

    def prepare(self, memory: HugePages) -> None:
        """Derive the matrix form; call once after the weights were loaded."""
        weight_COk = self.weight.detach()
        if self.channel_wise:
            matrix = weight_COk[:, 0].t().contiguous()  # [k, C]
        else:
            matrix = weight_COk.permute(2, 1, 0).flatten(0, 1)  # [k * O, C]
        self._matrix = memory.keep(matrix)
        self.weight = nn.Parameter(weight_COk.new_empty(0), requires_grad=False)

    def new_state(self, num_slots: int) -> Tensor:
        """Zeroed overlap, float32 ``[B, stride, O]``, without the bias."""
        return self._prepared().new_zeros(num_slots, self.stride, self.out_channels)

    def step(self, x_BTC: Tensor, partial_BSO: Tensor, keep_B11: Tensor | None) -> Tensor:
        """Convolve ``T`` new steps.

        Args:
            x_BTC: Input.
            partial_BSO: Overlap, updated in place.
            keep_B11: Slots that advance, bool; None when all do.

        Returns:
            ``[B, T * stride, O]``.
        """
        matrix = self._prepared()
        batch, num_steps, _ = x_BTC.shape
        stride = self.stride
        if self.channel_wise:
            y = x_BTC[:, :, None] * matrix
        else:
            y = project(x_BTC, matrix).view(batch, num_steps, 2 * stride, self.out_channels)
        head, tail = y[:, :, :stride], y[:, :, stride:]
        out = head.clone() if self.bias is None else head + self.bias
        out[:, 0] += partial_BSO[:batch]
        if num_steps > 1:
            out[:, 1:] += tail[:, :-1]
        _store(partial_BSO[:batch], tail[:, -1], keep_B11)
        return out.reshape(batch, num_steps * stride, self.out_channels)

    def _prepared(self) -> Tensor:
        if self._matrix is None:
            self.prepare(HugePages())
        matrix = self._matrix
        if matrix is None:
            raise RuntimeError("prepare() left no matrix")
        return matrix


def _store(state: Tensor, value: Tensor, keep_B11: Tensor | None) -> None:
    """Write ``value`` into the slots that advance."""
    if keep_B11 is None:
        state.copy_(value)
    else:
        state.copy_(torch.where(keep_B11, value, state))
