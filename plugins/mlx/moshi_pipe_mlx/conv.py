"""Causal streaming convolutions on MLX, time-major, each as one matrix product.

A window of a ``[B, T, C]`` input is one run of memory, so a convolution is a product of strided
windows with a ``[k * C, O]`` matrix, and a transposed one is a product and an overlap-add.

Shape letters: B slot, T time step, C channel in, O channel out, P left context in steps.

Source of the padding rules: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/conv.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.models.spec import MimiSpec


class Memory:
    """One tensor that a layer keeps between calls, slot axis first.

    Attributes:
        array: ``[B, ...]``.
    """

    __slots__ = ("array",)

    def __init__(self, array: mx.array) -> None:
        self.array = array

    def store(self, value: mx.array, keep_B11: mx.array | None) -> None:
        """Replace the first slots' rows, those alone that advance."""
        batch = value.shape[0]
        if keep_B11 is not None:
            value = mx.where(keep_B11, value, self.array[:batch])
        self.array = (
            value
            if batch == self.array.shape[0]
            else mx.concatenate([value, self.array[batch:]], axis=0)
        )


class CausalConv:
    """Convolution that sees its past only.

    Args:
        tensors: Of the codec.
        name: Stem of ``.weight`` ``[O, C, k]`` and, where there is one, ``.bias``.
        stride: Input steps per output step.
        dilation: Distance between taps.
        replicate: Fill the past of a fresh slot with its first step instead of zeros.
    """

    def __init__(
        self,
        tensors: Mapping[str, mx.array],
        name: str,
        *,
        stride: int = 1,
        dilation: int = 1,
        replicate: bool = False,
    ) -> None:
        weight_OCk = tensors[f"{name}.weight"]
        self._out, self._channels, self._kernel = weight_OCk.shape
        self._bias = tensors.get(f"{name}.bias")
        self._stride, self._dilation, self._replicate = stride, dilation, replicate
        self._context = (self._kernel - 1) * dilation + 1 - stride  # P
        matrix_kCO = weight_OCk.transpose(2, 1, 0).reshape(-1, self._out)
        self.matrix = mx.contiguous(matrix_kCO)
        mx.eval(self.matrix)

    def new_state(self, num_slots: int) -> Memory:
        """Zeroed left context, float32 ``[B, P, C]``."""
        return Memory(mx.zeros((num_slots, self._context, self._channels)))

    def step(
        self,
        x_BTC: mx.array,
        past: Memory,
        keep_B11: mx.array | None,
        fresh_B11: mx.array | None = None,
    ) -> mx.array:
        """Convolve ``T`` new steps, ``T`` a multiple of the stride.

        Args:
            x_BTC: Input.
            past: Left context, updated.
            keep_B11: Slots that advance, bool; None when all do.
            fresh_B11: Slots whose past is empty; used with ``replicate`` only.

        Returns:
            ``[B, T / stride, O]``.
        """
        batch, num_steps, _ = x_BTC.shape
        if self._context:
            before = past.array[:batch]
            if self._replicate and fresh_B11 is not None:
                before = mx.where(fresh_B11, x_BTC[:, :1], before)
            x_BTC = mx.concatenate([before, x_BTC], axis=1)
            past.store(x_BTC[:, num_steps:], keep_B11)
        y = self._windows(x_BTC, num_steps // self._stride) @ self.matrix
        y = y.reshape(batch, -1, self._out)
        return y if self._bias is None else y + self._bias

    def _windows(self, x_BTC: mx.array, num_out: int) -> mx.array:
        """What each output step sees, ``[B * T / stride, k * C]``."""
        batch, length, channels = x_BTC.shape
        if self._kernel == 1:
            return x_BTC.reshape(-1, channels)
        windows = mx.as_strided(
            x_BTC,
            (batch, num_out, self._kernel, channels),
            (length * channels, self._stride * channels, self._dilation * channels, 1),
        )
        return windows.reshape(batch * num_out, -1)


class CausalConvTranspose:
    """Transposed convolution whose overlap with the next frame is carried in the state.

    The kernel is twice the stride, which holds for every transposed convolution in Mimi.

    Args:
        tensors: Of the codec.
        name: Stem of ``.weight`` ``[C, O, 2 * stride]`` and ``.bias``.
        channel_wise: One filter per channel (``O = C``).
    """

    def __init__(
        self, tensors: Mapping[str, mx.array], name: str, *, channel_wise: bool = False
    ) -> None:
        weight_COk = tensors[f"{name}.weight"]
        self._bias = tensors.get(f"{name}.bias")
        self._stride = weight_COk.shape[2] // 2
        self._channel_wise = channel_wise
        self._out = weight_COk.shape[0] if channel_wise else weight_COk.shape[1]
        self.matrix = mx.contiguous(
            weight_COk[:, 0].T  # [k, C]
            if channel_wise
            else weight_COk.transpose(0, 2, 1).reshape(weight_COk.shape[0], -1)  # [C, k * O]
        )
        mx.eval(self.matrix)

    def new_state(self, num_slots: int) -> Memory:
        """Zeroed overlap, float32 ``[B, stride, O]``, without the bias."""
        return Memory(mx.zeros((num_slots, self._stride, self._out)))

    def step(self, x_BTC: mx.array, partial: Memory, keep_B11: mx.array | None) -> mx.array:
        """Convolve ``T`` new steps.

        Args:
            x_BTC: Input.
            partial: Overlap, updated.
            keep_B11: Slots that advance, bool; None when all do.

        Returns:
            ``[B, T * stride, O]``.
        """
        batch, num_steps, channels = x_BTC.shape
        stride = self._stride
        if self._channel_wise:
            y = x_BTC[:, :, None] * self.matrix
        else:
            y = x_BTC.reshape(-1, channels) @ self.matrix
            y = y.reshape(batch, num_steps, 2 * stride, self._out)
        head, tail = y[:, :, :stride], y[:, :, stride:]
        before = partial.array[:batch, None]
        if num_steps > 1:
            before = mx.concatenate([before, tail[:, :-1]], axis=1)
        out = head + before
        partial.store(tail[:, -1], keep_B11)
        out = out.reshape(batch, num_steps * stride, self._out)
        return out if self._bias is None else out + self._bias


class ResidualBlock:
    """``x + conv1(ELU(conv3(ELU(x))))``."""

    def __init__(self, tensors: Mapping[str, mx.array], name: str, dilation: int) -> None:
        self._wide = CausalConv(tensors, f"{name}.block.1.conv.conv", dilation=dilation)
        self._narrow = CausalConv(tensors, f"{name}.block.3.conv.conv")

    def new_state(self, num_slots: int) -> Memory:
        """Zeroed context of the wide convolution; the narrow one has none."""
        return self._wide.new_state(num_slots)

    def step(self, x_BTC: mx.array, past: Memory, keep_B11: mx.array | None) -> mx.array:
        """Advance."""
        y = self._wide.step(elu(x_BTC), past, keep_B11)
        return x_BTC + self._narrow.step(elu(y), past, keep_B11)


Layer = CausalConv | CausalConvTranspose | ResidualBlock


class SEANet:
    """A sequence of convolutions and residual blocks with ELU between them.

    Args:
        layers: Each with whether ELU goes before it.
    """

    def __init__(self, layers: list[tuple[bool, Layer]]) -> None:
        self._layers = layers

    def new_state(self, num_slots: int) -> list[Memory]:
        """Zeroed state, one tensor per layer."""
        return [layer.new_state(num_slots) for _, layer in self._layers]

    def step(self, x_BTC: mx.array, state: list[Memory], keep_B11: mx.array | None) -> mx.array:
        """Advance by T steps of the input rate."""
        for (activate, layer), memory in zip(self._layers, state, strict=True):
            x_BTC = layer.step(elu(x_BTC) if activate else x_BTC, memory, keep_B11)
        return x_BTC


def elu(x: mx.array) -> mx.array:
    """``x`` above zero, ``exp(x) - 1`` below."""
    return mx.where(x > 0, x, mx.expm1(mx.minimum(x, 0)))


def make_encoder(tensors: Mapping[str, mx.array], spec: MimiSpec) -> SEANet:
    """Build the encoder: samples ``[B, N, channels]`` to latents ``[B, N / hop, dimension]``."""
    layers: list[tuple[bool, Layer]] = [(False, CausalConv(tensors, "encoder.model.0.conv.conv"))]
    index = 1
    for ratio in reversed(spec.ratios):
        index = _add_residuals(layers, tensors, "encoder.model.{}", index, spec)
        down = CausalConv(tensors, f"encoder.model.{index + 1}.conv.conv", stride=ratio)
        layers.append((True, down))
        index += 2
    layers.append((True, CausalConv(tensors, f"encoder.model.{index + 1}.conv.conv")))
    return SEANet(layers)


def make_decoder(tensors: Mapping[str, mx.array], spec: MimiSpec) -> SEANet:
    """Build the decoder: latents ``[B, T, dimension]`` to samples ``[B, T * hop, channels]``."""
    layers: list[tuple[bool, Layer]] = [(False, CausalConv(tensors, "decoder.model.0.conv.conv"))]
    index = 1
    for _ in spec.ratios:
        up = CausalConvTranspose(tensors, f"decoder.model.{index + 1}.convtr.convtr")
        layers.append((True, up))
        index = _add_residuals(layers, tensors, "decoder.model.{}", index + 2, spec)
    layers.append((True, CausalConv(tensors, f"decoder.model.{index + 1}.conv.conv")))
    return SEANet(layers)


def _add_residuals(
    layers: list[tuple[bool, Layer]],
    tensors: Mapping[str, mx.array],
    name: str,
    index: int,
    spec: MimiSpec,
) -> int:
    """Add the residual blocks of one rate; returns the next index."""
    for i in range(spec.num_residual_layers):
        block = ResidualBlock(tensors, name.format(index + i), spec.dilation_base**i)
        layers.append((False, block))
    return index + spec.num_residual_layers
