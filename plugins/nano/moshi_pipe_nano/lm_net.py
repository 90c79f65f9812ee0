"""Moshi's language model as a network that can be trained, over the names of a checkpoint.

Shape letters: B conversation, S stream (text, own, user), K own codebook, T frame, D width,
M frame of any conversation, V entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe.models.layout import lm_layout
from moshi_pipe.models.spec import ZERO_CODE
from moshi_pipe_nano.mimi_net import by_name
from moshi_pipe_nano.stack import rms_norm, run_stack

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe.models.spec import LMSpec, TransformerSpec

_EMBEDDED: Final = 0.2  # standard deviation of embeddings at the start


class LMNet(nn.Module):
    """Trainable Moshi.

    Args:
        spec: Its numbers.
        seed: Of the initial weights.
    """

    def __init__(self, spec: LMSpec, seed: int = 0) -> None:
        super().__init__()
        if spec.depth is None:
            raise ValueError("the model must speak: its depth transformer is missing")
        self.spec, self.depth_spec = spec, spec.depth
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in lm_layout(spec, "F32").tensors.items():
            value = _initial(name, tensor.shape, spec, spec.depth, generator)
            self.register_parameter(name.replace(".", "/"), nn.Parameter(value))
        self.weights = by_name(self)

    def place(self, device: torch.device) -> LMNet:
        """Move to a device."""
        self.to(device)
        self.weights = by_name(self)
        return self

    def temporal(self, ids_BST: Tensor) -> Tensor:
        """States ``[B, T, D]`` of every frame, from the columns of :func:`columns`."""
        weights = self.weights
        x_BTD = _embed(ids_BST[:, 1], weights["emb.0.weight"])
        for k in range(1, self.spec.num_codebooks):
            x_BTD = x_BTD + _embed(ids_BST[:, 1 + k], weights[f"emb.{k}.weight"])
        x_BTD = x_BTD + _embed(ids_BST[:, 0], weights["text_emb.weight"])
        x_BTD = run_stack(x_BTD, weights, "transformer", self.spec.temporal)
        return rms_norm(x_BTD, weights["out_norm.alpha"])

    def text_logits(self, state_BTD: Tensor) -> Tensor:
        """Logits of the text stream."""
        return F.linear(state_BTD, self.weights["text_linear.weight"])

    def depth(self, state_MD: Tensor, text_M: Tensor, codes_MK: Tensor) -> Tensor:
        """Logits ``[M, K, V]`` of the own codes.

        Args:
            state_MD: From :meth:`temporal`.
            text_M: The text of the same frames.
            codes_MK: The codes to be predicted; those of the first ``n`` codebooks give ``n + 1``
                rows of logits, so that the last one's are never looked at.
        """
        weights = self.weights
        given = [_embed(text_M, weights["depformer_text_emb.weight"])]
        for k in range(min(codes_MK.shape[1], self.spec.num_generated - 1)):
            given.append(_embed(codes_MK[:, k], weights[f"depformer_emb.{k}.weight"]))
        inputs_KED = torch.stack([weights[f"depformer_in.{k}.weight"] for k in range(len(given))])
        x_MKE = torch.einsum("md,ked->mke", state_MD, inputs_KED) + torch.stack(given, dim=1)
        x_MKE = run_stack(x_MKE, weights, "depformer", self.depth_spec)
        heads_KVE = torch.stack([weights[f"linears.{k}.weight"] for k in range(len(given))])
        return torch.einsum("mke,kve->mkv", x_MKE, heads_KVE)


def columns(spec: LMSpec, text_BT: Tensor, own_BKT: Tensor, user_BKT: Tensor) -> Tensor:
    """What the model is given at each step, ``[B, S, T]``.

    At step ``t`` it has every stream's frame ``t - 1`` less the stream's delay, and the initial
    ids before there is one. The core's delay line gives the same where the first frame is stepped
    twice (``first_frame: duplicate``): what is heard in a session's very first step is lost.
    """
    frames_BST = torch.cat([text_BT[:, None], own_BKT, user_BKT], dim=1)
    ids_BST = torch.empty_like(frames_BST)
    num_frames = frames_BST.shape[-1]
    for s, (delay, initial) in enumerate(zip(spec.delays, spec.initial_codes, strict=True)):
        ids_BST[:, s, : delay + 1] = initial
        ids_BST[:, s, delay + 1 :] = frames_BST[:, s, : num_frames - delay - 1]
    return ids_BST


def targets(spec: LMSpec, own_BKT: Tensor) -> Tensor:
    """Own codes ``[B, T, K]`` that the model says at each step; -1 where none is."""
    out_BKT = torch.full_like(own_BKT, ZERO_CODE)
    for k in range(spec.num_generated):
        delay = spec.delays[1 + k]
        out_BKT[:, k, delay:] = own_BKT[:, k, : own_BKT.shape[-1] - delay]
    return out_BKT.transpose(1, 2)


def _embed(ids: Tensor, table_VD: Tensor) -> Tensor:
    found = F.embedding(ids.clamp(min=0), table_VD)
    return found.masked_fill((ids == ZERO_CODE)[..., None], 0.0)


def _initial(
    name: str,
    shape: tuple[int, ...],
    spec: LMSpec,
    depth: TransformerSpec,
    generator: torch.Generator,
) -> Tensor:
    """Initial weights: unit variance through a layer, residual branches quieter with depth."""
    if name.endswith("alpha"):
        return torch.ones(shape)
    normal = torch.randn(shape, generator=generator)
    if name.startswith(("emb.", "text_emb", "depformer_emb", "depformer_text_emb")):
        return normal * _EMBEDDED
    scale = float(shape[-1]) ** -0.5
    if "out_projs" in name or "linear_out" in name:
        stack = depth if name.startswith("depformer") else spec.temporal
        scale *= float((2 * stack.num_layers) ** -0.5)
    if name.startswith(("text_linear", "linears")):
        scale *= 0.5
    scaled: Tensor = normal * scale
    return scaled
