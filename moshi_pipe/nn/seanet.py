"""SEANet: the convolutional half of Mimi, between samples and 25 Hz latents.

Both directions are lists of steps under the reference's parameter names (``model.3.conv.conv``).

Shape letters: B slot, T time step, C channel.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/seanet.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F

from moshi_pipe.nn.conv import CausalConv, CausalConvTranspose

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe.models.spec import MimiSpec


class ConvHolder(nn.Module):
    """Gives a convolution the reference's name, ``<outer>.conv.conv`` or ``.convtr.convtr``."""

    def __init__(self, layer: CausalConv | CausalConvTranspose) -> None:
        super().__init__()
        inner = nn.Module()
        name = "conv" if isinstance(layer, CausalConv) else "convtr"
        inner.add_module(name, layer)
        self.add_module(name, inner)
        self.layer = [layer]  # in a list: not a second name for the same parameters


class ResidualBlock(nn.Module):
    """``x + conv1(ELU(conv3(ELU(x))))``, the convolutions at ``block.1`` and ``block.3``."""

    def __init__(self, channels: int, spec: MimiSpec, dilation: int) -> None:
        super().__init__()
        hidden = channels // spec.compress
        wide = CausalConv(channels, hidden, spec.residual_kernel_size, dilation=dilation)
        narrow = CausalConv(hidden, channels, 1)
        self.block = nn.ModuleList(
            [nn.Identity(), ConvHolder(wide), nn.Identity(), ConvHolder(narrow)]
        )
        self.wide = [wide]
        self.narrow = [narrow]

    def step(self, x_BTC: Tensor, state: list[Tensor], keep_B11: Tensor | None) -> Tensor:
        """Advance; ``state`` holds the wide convolution's context."""
        y = self.wide[0].step(F.elu(x_BTC), state[0], keep_B11)
        return self.narrow[0].step(F.elu_(y), state[1], keep_B11).add_(x_BTC)

    def new_state(self, num_slots: int) -> list[Tensor]:
        """Zeroed contexts of both convolutions."""
        return [self.wide[0].new_state(num_slots), self.narrow[0].new_state(num_slots)]


class SEANet(nn.Module):
    """A sequence of convolutions and residual blocks with ELU between them.

    Attributes:
        model: The layers at the reference's indices; activations hold an index each.
    """

    def __init__(self, layers: list[ConvHolder | ResidualBlock | None]) -> None:
        super().__init__()
        self.model = nn.ModuleList(nn.Identity() if layer is None else layer for layer in layers)
        self._active = [layer for layer in layers if layer is not None]
        self._elu_before = [
            i > 0 and layers[i - 1] is None for i, layer in enumerate(layers) if layer is not None
        ]

    def new_state(self, num_slots: int) -> list[list[Tensor]]:
        """Zeroed state, one list of tensors per layer, slot axis first."""
        return [
            layer.new_state(num_slots)
            if isinstance(layer, ResidualBlock)
            else [layer.layer[0].new_state(num_slots)]
            for layer in self._active
        ]

    def step(self, x_BTC: Tensor, state: list[list[Tensor]], keep_B11: Tensor | None) -> Tensor:
        """Advance by T steps of the input rate.

        Args:
            x_BTC: Input, T a multiple of the total stride.
            state: Updated in place.
            keep_B11: Slots that advance, bool; None when all do.
        """
        for layer, elu, memory in zip(self._active, self._elu_before, state, strict=True):
            if elu:
                x_BTC = F.elu_(x_BTC)
            if isinstance(layer, ResidualBlock):
                x_BTC = layer.step(x_BTC, memory, keep_B11)
            else:
                x_BTC = layer.layer[0].step(x_BTC, memory[0], keep_B11)
        return x_BTC


def make_encoder(spec: MimiSpec) -> SEANet:
    """Build the encoder: samples ``[B, N, channels]`` to latents ``[B, N / hop, dimension]``."""
    width = spec.num_filters
    layers: list[ConvHolder | ResidualBlock | None] = [
        ConvHolder(CausalConv(spec.channels, width, spec.kernel_size))
    ]
    for ratio in reversed(spec.ratios):
        layers += _residual_blocks(width, spec)
        down = CausalConv(width, 2 * width, 2 * ratio, stride=ratio)
        layers += [None, ConvHolder(down)]
        width *= 2
    layers += [None, ConvHolder(CausalConv(width, spec.dimension, spec.last_kernel_size))]
    return SEANet(layers)


def make_decoder(spec: MimiSpec) -> SEANet:
    """Build the decoder: latents ``[B, T, dimension]`` to samples ``[B, T * hop, channels]``."""
    width = spec.num_filters * 2 ** len(spec.ratios)
    layers: list[ConvHolder | ResidualBlock | None] = [
        ConvHolder(CausalConv(spec.dimension, width, spec.kernel_size))
    ]
    for ratio in spec.ratios:
        up = CausalConvTranspose(width, width // 2, stride=ratio)
        layers += [None, ConvHolder(up)]
        width //= 2
        layers += _residual_blocks(width, spec)
    layers += [None, ConvHolder(CausalConv(width, spec.channels, spec.last_kernel_size))]
    return SEANet(layers)


def _residual_blocks(width: int, spec: MimiSpec) -> list[ConvHolder | ResidualBlock | None]:
    return [
        ResidualBlock(width, spec, spec.dilation_base**i) for i in range(spec.num_residual_layers)
    ]
