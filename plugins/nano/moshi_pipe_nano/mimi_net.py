"""Mimi as a network that can be trained: whole recordings at once, over the released names.

The streaming modules of ``moshi_pipe.nn`` work in place, frame by frame, and keep their weights as
matrices; this is the same arithmetic over parameters under the names of a checkpoint, so that what
is trained is saved as it is and runs there. A test holds the two together.

Shape letters: B recording, C channel, D latent width, N sample, T frame, M frame of any recording,
K codebook, Q width of a codebook entry, V entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe.models.layout import mimi_layout
from moshi_pipe_nano.stack import run_stack

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe.models.spec import MimiSpec

_CODEBOOK = "_codebook."
_DECAY = 0.99
_DEAD = 0.3  # entries used less often than this are drawn anew
_EPSILON = 1e-5


@dataclass(slots=True)
class Quantized:
    """What the quantizer made of latents.

    Attributes:
        codes_BKT: int64.
        latent_BDT: What the decoder gets; gradients pass to the encoder straight through.
        semantic_MQ: The first codebook's entries, gradients likewise.
        plain_MQ: What the first codebook was given.
        commitment: Mean squared distance between what was given and what was chosen.
    """

    codes_BKT: Tensor
    latent_BDT: Tensor
    semantic_MQ: Tensor
    plain_MQ: Tensor
    commitment: Tensor


class MimiNet(nn.Module):
    """Trainable Mimi.

    Args:
        spec: Its numbers; every codebook is in use.
        seed: Of the initial weights.
    """

    def __init__(self, spec: MimiSpec, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in mimi_layout(spec).tensors.items():
            value = _initial(name, tensor.shape, spec, generator)
            key = name.replace(".", "/")
            if _CODEBOOK in name:
                self.register_buffer(key, value)
            else:
                self.register_parameter(key, nn.Parameter(value))
        self.weights = by_name(self)

    def place(self, device: torch.device) -> MimiNet:
        """Move to a device."""
        self.to(device)
        self.weights = by_name(self)
        return self

    def named_tensors(self) -> dict[str, Tensor]:
        """Weights under the in-memory names of the layout."""
        return {name: value.detach() for name, value in self.weights.items()}

    def part(self, prefixes: tuple[str, ...]) -> list[Tensor]:
        """Parameters whose names begin with one of ``prefixes``."""
        return [
            value
            for name, value in self.weights.items()
            if name.startswith(prefixes) and isinstance(value, nn.Parameter)
        ]

    def encode(self, pcm_BN: Tensor) -> Tensor:
        """Latents ``[B, D, T]`` of whole recordings, ``N`` a multiple of the frame."""
        spec = self.spec
        x = self._conv(pcm_BN[:, None], "encoder.model.0")
        index = 1
        for ratio in reversed(spec.ratios):
            for i in range(spec.num_residual_layers):
                x = self._residual(x, f"encoder.model.{index}", spec.dilation_base**i)
                index += 1
            x = self._conv(F.elu(x), f"encoder.model.{index + 1}", stride=ratio)
            index += 2
        x = self._conv(F.elu(x), f"encoder.model.{index + 1}")
        x = self._transform(x, "encoder_transformer.transformer")
        weight = self.weights["downsample.conv.conv.conv.weight"]
        past = x[..., :1].expand(-1, -1, weight.shape[-1] - spec.stride)
        return F.conv1d(torch.cat([past, x], dim=-1), weight, stride=spec.stride)

    def decode(self, latent_BDT: Tensor) -> Tensor:
        """Samples ``[B, N]`` of quantized latents."""
        spec = self.spec
        weight = self.weights["upsample.convtr.convtr.convtr.weight"]
        x = F.conv_transpose1d(latent_BDT, weight, stride=spec.stride, groups=latent_BDT.shape[1])
        x = self._transform(
            x[..., : latent_BDT.shape[-1] * spec.stride], "decoder_transformer.transformer"
        )
        x = self._conv(x, "decoder.model.0")
        index = 1
        for ratio in spec.ratios:
            name = f"decoder.model.{index + 1}.convtr.convtr"
            length = x.shape[-1] * ratio
            weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
            x = F.conv_transpose1d(F.elu(x), weight, bias, stride=ratio)[..., :length]
            index += 2
            for i in range(spec.num_residual_layers):
                x = self._residual(x, f"decoder.model.{index}", spec.dilation_base**i)
                index += 1
        return self._conv(F.elu(x), f"decoder.model.{index + 1}")[:, 0]

    def quantize(
        self,
        latent_BDT: Tensor,
        *,
        num_codebooks_B: Tensor | None = None,
        learn: tuple[bool, bool] = (False, False),
    ) -> Quantized:
        """Quantize latents.

        Args:
            latent_BDT: From :meth:`encode`.
            num_codebooks_B: Codebooks whose entries each recording keeps; None keeps all.
            learn: Whether the first and the further codebooks' entries follow these latents.
        """
        batch, dim, num_frames = latent_BDT.shape
        latent_MD = latent_BDT.transpose(1, 2).reshape(-1, dim)
        kept_M = None
        if num_codebooks_B is not None:
            kept_M = num_codebooks_B.repeat_interleave(num_frames)
        plain_MQ = self._project(latent_MD, "quantizer.rvq_first.input_proj")
        first_MQ, codes, commitment = self._chain(plain_MQ, "rvq_first", 1, None, learn[0])
        semantic_MQ = plain_MQ + (first_MQ - plain_MQ).detach()
        total_MD = self._project(semantic_MQ, "quantizer.rvq_first.output_proj")
        num_rest = self.spec.num_codebooks - 1
        if num_rest:
            given_MQ = self._project(latent_MD, "quantizer.rvq_rest.input_proj")
            limit_M = None if kept_M is None else kept_M - 1
            rest_MQ, more, extra = self._chain(given_MQ, "rvq_rest", num_rest, limit_M, learn[1])
            through_MQ = given_MQ + (rest_MQ - given_MQ).detach()
            if limit_M is not None:
                through_MQ = through_MQ * (limit_M > 0)[:, None]
            total_MD = total_MD + self._project(through_MQ, "quantizer.rvq_rest.output_proj")
            codes, commitment = codes + more, commitment + extra
        codes_BKT = torch.stack(codes, dim=1).view(batch, num_frames, -1).transpose(1, 2)
        quantized_BDT = total_MD.view(batch, num_frames, dim).transpose(1, 2)
        return Quantized(codes_BKT, quantized_BDT, semantic_MQ, plain_MQ, commitment)

    def latents(self, codes_BKT: Tensor) -> Tensor:
        """Latents ``[B, D, T]`` of codes."""
        total: Tensor | None = None
        for chain, first, last in (("rvq_first", 0, 1), ("rvq_rest", 1, codes_BKT.shape[1])):
            if first >= last:
                continue
            entries = [
                F.embedding(codes_BKT[:, k], self._centroids(f"quantizer.{chain}", k - first))
                for k in range(first, last)
            ]
            entry = torch.stack(entries).sum(0)
            y = F.linear(entry, self.weights[f"quantizer.{chain}.output_proj.weight"][..., 0])
            total = y if total is None else total + y
        if total is None:
            raise ValueError("codes must have at least one codebook")
        return total.transpose(1, 2)

    def code_latents(self) -> list[Tensor]:
        """What each code adds to the latent, ``[V, D]`` of every codebook, less their mean."""
        found = []
        for k in range(self.spec.num_codebooks):
            chain = "rvq_first" if k == 0 else "rvq_rest"
            entries_VQ = self._centroids(f"quantizer.{chain}", max(k - 1, 0))
            latents_VD = self._project(entries_VQ, f"quantizer.{chain}.output_proj")
            found.append(latents_VD - latents_VD.mean(0))
        return found

    def _chain(
        self, given_MQ: Tensor, chain: str, count: int, kept_M: Tensor | None, learn: bool
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Quantize by ``count`` codebooks in turn: the sum of entries, codes, commitment."""
        residual_MQ, total_MQ = given_MQ, torch.zeros_like(given_MQ)
        codes, commitment = [], given_MQ.new_zeros(())
        for k in range(count):
            centroids_VQ = self._centroids(f"quantizer.{chain}", k)
            half_norm_V = centroids_VQ.square().sum(-1) / 2
            code_M = torch.addmm(
                half_norm_V, residual_MQ.detach(), centroids_VQ.t(), alpha=-1
            ).argmin(-1)
            entry_MQ = F.embedding(code_M, centroids_VQ)
            if learn:
                self._learn(f"quantizer.{chain}", k, residual_MQ.detach(), code_M)
            commitment = commitment + F.mse_loss(residual_MQ, entry_MQ)
            total_MQ = total_MQ + (entry_MQ if kept_M is None else entry_MQ * (kept_M > k)[:, None])
            residual_MQ = residual_MQ - entry_MQ
            codes.append(code_M)
        return total_MQ, codes, commitment

    def _centroids(self, chain: str, k: int) -> Tensor:
        name = f"{chain}.vq.layers.{k}._codebook"
        usage_V = self.weights[f"{name}.cluster_usage"].clamp(min=_EPSILON)
        return self.weights[f"{name}.embedding_sum"] / usage_V[:, None]

    @torch.no_grad()
    def _learn(self, chain: str, k: int, given_MQ: Tensor, code_M: Tensor) -> None:
        """Move entries towards what chose them; draw the unused ones from what was given.

        Source: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1; restarts as in
        Dhariwal et al. 2020, arXiv:2005.00341.
        """
        name = f"{chain}.vq.layers.{k}._codebook"
        usage_V = self.weights[f"{name}.cluster_usage"]
        sums_VQ = self.weights[f"{name}.embedding_sum"]
        counts_V = torch.zeros_like(usage_V)
        counts_V.index_add_(0, code_M, torch.ones_like(code_M, dtype=usage_V.dtype))
        usage_V.mul_(_DECAY).add_(counts_V, alpha=1 - _DECAY)
        added_VQ = torch.zeros_like(sums_VQ).index_add_(0, code_M, given_MQ)
        sums_VQ.mul_(_DECAY).add_(added_VQ, alpha=1 - _DECAY)
        fair = len(code_M) / len(usage_V)
        # Without a look at which are dead: that would make a GPU wait for its host.
        dead_V = usage_V < _DEAD * 0.1 * fair
        drawn_V = torch.randint(len(given_MQ), (len(usage_V),), device=given_MQ.device)
        sums_VQ.copy_(torch.where(dead_V[:, None], given_MQ[drawn_V] * (0.5 * fair), sums_VQ))
        usage_V.copy_(torch.where(dead_V, 0.5 * fair, usage_V))

    def _project(self, x_MD: Tensor, name: str) -> Tensor:
        return F.linear(x_MD, self.weights[f"{name}.weight"][..., 0])

    def _conv(self, x_BCN: Tensor, name: str, *, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.weights[f"{name}.conv.conv.weight"]
        context = (weight.shape[-1] - 1) * dilation + 1 - stride
        padded = F.pad(x_BCN, (context, 0)) if context else x_BCN
        bias = self.weights[f"{name}.conv.conv.bias"]
        return F.conv1d(padded, weight, bias, stride=stride, dilation=dilation)

    def _residual(self, x_BCN: Tensor, name: str, dilation: int) -> Tensor:
        y = self._conv(F.elu(x_BCN), f"{name}.block.1", dilation=dilation)
        return x_BCN + self._conv(F.elu(y), f"{name}.block.3")

    def _transform(self, x_BDT: Tensor, prefix: str) -> Tensor:
        x_BTD = x_BDT.transpose(1, 2)
        spec = self.spec
        return run_stack(x_BTD, self.weights, prefix, spec.transformer, spec.stride).transpose(1, 2)


def by_name(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a net under the names of a checkpoint."""
    own = [*net.named_parameters(), *net.named_buffers()]
    return {key.replace("/", "."): value for key, value in own}


def _initial(
    name: str, shape: tuple[int, ...], spec: MimiSpec, generator: torch.Generator
) -> Tensor:
    """Initial weights: unit variance through every layer, quiet residual branches."""
    last = name.rpartition(".")[2]
    if last == "bias":
        return torch.zeros(shape)
    if last in ("cluster_usage", "_initialized") or ("norm" in name and last == "weight"):
        return torch.ones(shape)
    if last == "scale":
        return torch.full(shape, spec.transformer.layer_scale or 1.0)
    normal = torch.randn(shape, generator=generator)
    if last == "embedding_sum":
        return normal * 0.1
    if "upsample" in name:
        return torch.ones(shape) * 0.5 + 0.02 * normal
    if "convtr" in name:
        return normal * float((1.0 / (2 * shape[0])) ** 0.5)
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return normal * float(fan_in**-0.5)
