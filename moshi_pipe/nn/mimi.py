"""Mimi, the streaming neural codec: 24 kHz audio to 12.5 columns of codes a second, and back.

Shape letters: B slot, C audio channel, N PCM sample, T frame or latent position, K codebook,
D latent width.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/{loaders,compression}.py; Défossez et al.
2024, "Moshi: a speech-text foundation model for real-time dialogue", section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moshi_pipe.models.protocols import Capabilities
from moshi_pipe.nn.conv import CausalConv, CausalConvTranspose
from moshi_pipe.nn.huge_pages import HugePages
from moshi_pipe.nn.linear import apply_fast
from moshi_pipe.nn.quantizer import Codebook, SplitQuantizer
from moshi_pipe.nn.seanet import ConvHolder, make_decoder, make_encoder
from moshi_pipe.nn.transfer import to_rows
from moshi_pipe.nn.transformer import Transformer, TransformerState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from moshi_pipe.models.spec import CodecSpec, MimiSpec


@dataclass(slots=True)
class MimiState:
    """What one direction of the codec remembers; slot axis first in every tensor.

    Attributes:
        convs: Left contexts or overlaps of SEANet's layers.
        transformer: Rings and positions.
        resample: Left context of the down-sampling or overlap of the up-sampling.
        fresh_B: Slots that have not seen a frame, bool.
        num_frames: Frames per call.
    """

    convs: list[list[Tensor]]
    transformer: TransformerState
    resample: Tensor
    fresh_B: Tensor
    num_frames: int


class Mimi(nn.Module):
    """The codec on PyTorch, float32. Implements :class:`moshi_pipe.models.protocols.Codec`.

    Weights are loaded under the reference's names and then turned into matrices by
    :meth:`prepare`. One frame per call is the live case; a state may also be made for more frames
    per call, and a state for all frames at once is the offline case.

    Args:
        mimi: Hyperparameters.
    """

    def __init__(self, mimi: MimiSpec) -> None:
        super().__init__()
        self.mimi = mimi
        self.encoder = make_encoder(mimi)
        self.encoder_transformer = _ConvLayout(mimi)
        self.downsample = _Resample(
            CausalConv(
                mimi.dimension,
                mimi.dimension,
                2 * mimi.stride,
                stride=mimi.stride,
                bias=False,
                replicate=True,
            )
        )
        self.quantizer = SplitQuantizer(mimi)
        self.upsample = _Resample(
            CausalConvTranspose(
                mimi.dimension, mimi.dimension, stride=mimi.stride, channel_wise=True
            )
        )
        self.decoder_transformer = _ConvLayout(mimi)
        self.decoder = make_decoder(mimi)
        self.requires_grad_(False)
        self.eval()

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes that the graph needs to know."""
        return self.mimi.codec

    @property
    def caps(self) -> Capabilities:
        """Where this codec runs."""
        return Capabilities(backend="torch", device=str(self.device), dtype="float32")

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.quantizer.rvq_first.input_proj.weight.device

    def prepare(self) -> None:
        """Derive the matrices that the steps use and drop the stored forms."""
        memory = HugePages()
        for module in self.modules():
            if isinstance(module, CausalConv | CausalConvTranspose | Codebook):
                module.prepare(memory)
            elif isinstance(module, nn.Linear):
                module.weight.data = memory.keep(module.weight.data)

    def use_kernels(self) -> None:
        """Step the transformers with kernels of our own; see :meth:`Transformer.use_kernels`."""
        self.encoder_transformer.transformer.use_kernels()
        self.decoder_transformer.transformer.use_kernels()

    def new_encoder_state(self, num_slots: int, num_frames: int = 1) -> MimiState:
        """Make zeroed encoder state.

        Args:
            num_slots: Streams held at once.
            num_frames: Frames per call. With more than the attention window holds, the call
                attends as the offline reference does.
        """
        return self._new_state(num_slots, num_frames, encoder=True)

    def new_decoder_state(self, num_slots: int, num_frames: int = 1) -> MimiState:
        """Make zeroed decoder state; see :meth:`new_encoder_state`."""
        return self._new_state(num_slots, num_frames, encoder=False)

    @torch.inference_mode()
    def encode(self, pcm_BCN: Tensor, valid_B: Tensor, state: MimiState) -> Tensor:
        """Encode one call's frames; see :class:`~moshi_pipe.models.protocols.Codec`.

        Returns:
            int64 ``[B, K]`` for one frame per call, ``[B, K, T]`` for more.
        """
        codes_BKT = self.quantizer.encode(
            self.latent(pcm_BCN, valid_B, state), self.mimi.num_active
        )
        return codes_BKT[..., 0] if state.num_frames == 1 else codes_BKT

    @torch.inference_mode()
    def latent(self, pcm_BCN: Tensor, valid_B: Tensor, state: MimiState) -> Tensor:
        """Latents before quantization, float32 ``[B, T, D]``."""
        wanted = (self.mimi.channels, state.num_frames * self.mimi.frame_size)
        if pcm_BCN.shape[1:] != wanted:
            raise ValueError(
                f"pcm must be [B, {wanted[0]}, {wanted[1]}], got {list(pcm_BCN.shape)}"
            )
        batch = pcm_BCN.shape[0]
        keep = _keep(valid_B)
        pcm_BNC = pcm_BCN.transpose(1, 2).contiguous()
        if keep is not None:
            pcm_BNC = torch.where(keep, pcm_BNC, 0.0)  # what an idle slot holds may be anything
        x = self.encoder.step(pcm_BNC, state.convs, keep)
        x = self.encoder_transformer.transformer.step(
            x, state.transformer, valid_B, apply=apply_fast
        )
        fresh_B11 = state.fresh_B[:batch, None, None]
        down = self.downsample.layer[0]
        latent_BTD = down.step(x, state.resample, keep, fresh_B11)  # type: ignore[call-arg]
        state.fresh_B[:batch] &= ~valid_B
        return latent_BTD

    @torch.inference_mode()
    def decode(self, codes_BK: Tensor, valid_B: Tensor, state: MimiState) -> Tensor:
        """Decode one call's frames; see :class:`~moshi_pipe.models.protocols.Codec`.

        Args:
            codes_BK: int64 ``[B, K]``, or ``[B, K, T]`` for more frames per call.
            valid_B: Slots that advance.
            state: Updated in place.
        """
        codes_BKT = codes_BK if codes_BK.ndim == 3 else codes_BK[..., None]
        keep = _keep(valid_B)
        if keep is not None:
            codes_BKT = torch.where(keep, codes_BKT, 0)  # -1 and -2 are no indices
        x = self.quantizer.decode(codes_BKT)
        x = self.upsample.layer[0].step(x, state.resample, keep)
        x = self.decoder_transformer.transformer.step(
            x, state.transformer, valid_B, apply=apply_fast
        )
        return self.decoder.step(x, state.convs, keep).transpose(1, 2)

    def reset(self, state: MimiState, slots: Sequence[int]) -> None:
        """Zero the named slots."""
        if not slots:
            return
        rows = to_rows(slots, self.device)
        for tensor in _contexts(state):
            tensor.index_fill_(0, rows, 0)
        state.transformer.reset(slots)
        state.fresh_B.index_fill_(0, rows, True)

    def snapshot(self, state: MimiState, slot: int) -> dict[str, Any]:
        """Copy a slot; see :class:`~moshi_pipe.models.protocols.Keeping`."""
        return {
            "convs": [tensor[slot].to("cpu", copy=True) for tensor in _contexts(state)],
            "transformer": state.transformer.snapshot(slot),
            "fresh": state.fresh_B[slot].to("cpu", copy=True),
        }

    def restore(self, state: MimiState, slot: int, snapshot: Mapping[str, Any]) -> None:
        """Put a copy into a slot; see :class:`~moshi_pipe.models.protocols.Keeping`."""
        for tensor, held in zip(_contexts(state), snapshot["convs"], strict=True):
            tensor[slot] = held.to(tensor.device)
        state.transformer.restore(slot, snapshot["transformer"])
        state.fresh_B[slot] = bool(snapshot["fresh"])

    def _new_state(self, num_slots: int, num_frames: int, *, encoder: bool) -> MimiState:
        seanet = self.encoder if encoder else self.decoder
        stack = self.encoder_transformer if encoder else self.decoder_transformer
        resample = self.downsample if encoder else self.upsample
        context = self.mimi.transformer.context or 0
        return MimiState(
            convs=seanet.new_state(num_slots),
            transformer=stack.transformer.new_state(
                num_slots,
                capacity=max(context, num_frames * self.mimi.stride),
                dtype=torch.float32,
                device=self.device,
            ),
            resample=resample.layer[0].new_state(num_slots),
            fresh_B=torch.ones(num_slots, dtype=torch.bool, device=self.device),
            num_frames=num_frames,
        )


def _contexts(state: MimiState) -> list[Tensor]:
    """What convolutions remember, slot axis first."""
    return [tensor for tensors in [*state.convs, [state.resample]] for tensor in tensors]


class _ConvLayout(nn.Module):
    """Gives a transformer the reference's name, ``encoder_transformer.transformer``."""

    def __init__(self, mimi: MimiSpec) -> None:
        super().__init__()
        self.transformer = Transformer(mimi.transformer, prefix=True)


class _Resample(nn.Module):
    """Gives the resampling layers the reference's names, ``downsample.conv.conv.conv``."""

    def __init__(self, layer: CausalConv | CausalConvTranspose) -> None:
        super().__init__()
        holder = ConvHolder(layer)
        self.add_module("conv" if isinstance(layer, CausalConv) else "convtr", holder)
        self.layer = [layer]


def _keep(valid_B: Tensor) -> Tensor | None:
    """``[B, 1, 1]`` mask of the slots that advance; None when a CPU can see that all do."""
    if valid_B.device.type == "cpu" and bool(valid_B.all()):
        return None
    return valid_B[:, None, None]
