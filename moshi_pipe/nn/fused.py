"""A transformer's step on kernels of our own; see :mod:`moshi_pipe.nn.triton_kernels`.

Shape letters: as in :mod:`moshi_pipe.nn.transformer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import functional as F

from moshi_pipe.nn import triton_kernels as kernels
from moshi_pipe.nn.norm import RMSNorm

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe.nn.linear import Apply
    from moshi_pipe.nn.transformer import Transformer, TransformerState


def fused_step(
    stack: Transformer,
    x_BTD: Tensor,
    state: TransformerState,
    valid_B: Tensor,
    weight_set: int,
    apply: Apply,
) -> Tensor:
    """Advance the valid slots, as :meth:`~moshi_pipe.nn.transformer.Transformer.step` does.

    Results differ by the order of sums.
    """
    batch, num_new, _ = x_BTD.shape
    spec = stack.spec
    position_B = state.position_B[:batch]
    x_BTD = x_BTD.contiguous()
    update: Tensor | None = None
    for layer, ring in zip(stack.layers, state.rings, strict=True):
        block: Any = layer
        x_BTD, normed = _add_and_norm(x_BTD, update, block.norm1)
        attended = kernels.attend(
            apply(normed, block.self_attn.in_projs[weight_set]),
            ring,
            position_B,
            num_heads=spec.num_heads,
            positional_embedding=spec.positional_embedding,
            max_period=spec.max_period,
            context=spec.context,
        )
        update = block.layer_scale_1(apply(attended, block.self_attn.out_projs[weight_set]))
        x_BTD, normed = _add_and_norm(x_BTD, update, block.norm2)
        update = block.layer_scale_2(_feed_forward(block, normed, weight_set, apply))
    position_B += num_new * valid_B
    return x_BTD if update is None else x_BTD + update


def _add_and_norm(
    x_BTD: Tensor, update_BTD: Tensor | None, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    if not isinstance(norm, RMSNorm) or not norm.float32:
        x_BTD = x_BTD if update_BTD is None else x_BTD + update_BTD
        return x_BTD, norm(x_BTD)
    update_MD = None if update_BTD is None else update_BTD.reshape(-1, update_BTD.shape[-1])
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    sum_MD, out_MD = kernels.rms_norm(x_MD, norm.alpha, norm.eps, update_MD)
    return sum_MD.view_as(x_BTD), out_MD.view_as(x_BTD)


def _feed_forward(block: Any, x_BTD: Tensor, weight_set: int, apply: Apply) -> Tensor:
    if block.gating is None:
        return apply(F.gelu(apply(x_BTD, block.linear1)), block.linear2)
    gating: Any = block.gating
    if isinstance(gating, nn.ModuleList):
        gating = gating[weight_set]
    hidden = apply(x_BTD, gating.linear_in)
    gated_MF = kernels.gate(hidden.reshape(-1, hidden.shape[-1]))
    return apply(gated_MF.view(*hidden.shape[:-1], -1), gating.linear_out)
