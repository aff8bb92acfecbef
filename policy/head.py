"""The head of a language model without its logits: log-probabilities and entropies of given tokens, tile by tile.

`N` tokens, `D` hidden size, `V` vocabulary; a tile is `C` tokens by `W` words. Forward folds each tile into running
sums of the softmax; backward computes it again, as the gradient of the logits, and adds it to the gradients of hidden
states and weights, both in float32. Neither holds more than two or three tiles, whatever N and V are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Of float32 logits. On CPU it stays in a core's cache; on a GPU it is large enough to fill the device."""
TILE_TOKENS = 256


def score(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of what it was drawn from: [N] float32, nats.

    Gradients flow through the log-probabilities only. Under autocast products are of its type and sums of float32.
    """
    logprob_N, entropy_N = _Score.apply(hidden_ND, weight_VD, bias_V, target_N)
    return logprob_N, entropy_N


def tile_words(device: torch.device) -> int:
    """`W`: the words of one tile."""
    return TILE_BYTES.get(device.type, TILE_BYTES["cuda"]) // (4 * TILE_TOKENS)


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        kind = hidden_ND.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        top_N = hidden_ND.new_full(target_N.shape, -torch.inf, dtype=torch.float32)
        at_target_N, total_N, weighted_N = (torch.zeros_like(top_N) for _ in range(3))
        for words, some, logit_CW in _tiles(hidden_ND, weight_VD, bias_V, ctx.dtype):
            local_C, here_C = _within(target_N[some], words)
            at_target_N[some] += logit_CW.gather(1, local_C[:, None]).squeeze(1).where(here_C, 0.0)
            top_C = torch.maximum(top_N[some], logit_CW.amax(1))
            shrink_C = (top_N[some] - top_C).exp()
            exp_CW = (logit_CW - top_C[:, None]).exp_()
            total_N[some] = total_N[some] * shrink_C + exp_CW.sum(1)
            weighted_N[some] = weighted_N[some] * shrink_C + exp_CW.mul_(logit_CW).sum(1)
            top_N[some] = top_C
        normaliser_N = top_N + total_N.log()
        entropy_N = normaliser_N - weighted_N / total_N
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, target_N, normaliser_N)
        ctx.mark_non_differentiable(entropy_N)
        return at_target_N - normaliser_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        """The gradient of a token's logits is grad * (1 at the target - probability)."""
        hidden_ND, weight_VD, bias_V, target_N, normaliser_N = ctx.saved_tensors
        hidden_grad_ND, weight_grad_VD = (torch.zeros_like(x, dtype=torch.float32) for x in (hidden_ND, weight_VD))
        bias_grad_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for words, some, logit_CW in _tiles(hidden_ND, weight_VD, bias_V, ctx.dtype):
            local_C, here_C = _within(target_N[some], words)
            grad_CW = logit_CW.sub_(normaliser_N[some, None]).exp_().mul_(-grad_N[some, None])
            grad_CW.scatter_add_(1, local_C[:, None], grad_N[some].where(here_C, 0.0)[:, None])
            if bias_grad_V is not None:
                bias_grad_V[words] += grad_CW.sum(0)
            grad_CW = grad_CW.to(ctx.dtype)
            _add_product(hidden_grad_ND[some], grad_CW, weight_VD[words].to(ctx.dtype))
            _add_product(weight_grad_VD[words], grad_CW.T, hidden_ND[some].to(ctx.dtype))
        bias_grad_V = None if bias_grad_V is None or bias_V is None else bias_grad_V.to(bias_V.dtype)
        return hidden_grad_ND.to(hidden_ND.dtype), weight_grad_VD.to(weight_VD.dtype), bias_grad_V, None


def _tiles(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The words, the tokens and the float32 logits of each tile, all tokens before the next words."""
    hidden_ND = hidden_ND.to(dtype)
    width = tile_words(hidden_ND.device)
    for word in range(0, weight_VD.shape[0], width):
        words = slice(word, min(word + width, weight_VD.shape[0]))
        weight_WD = weight_VD[words].to(dtype)
        for token in range(0, hidden_ND.shape[0], TILE_TOKENS):
            some = slice(token, min(token + TILE_TOKENS, hidden_ND.shape[0]))
            logit_CW = (hidden_ND[some] @ weight_WD.T).float()
            yield words, some, logit_CW if bias_V is None else logit_CW.add_(bias_V[words])


def _within(target_C: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Each target counted from the tile's first word, and whether the tile has it."""
    local_C = target_C - words.start
    last = words.stop - words.start - 1
    return local_C.clamp(0, last), (local_C >= 0) & (local_C <= last)


def _add_product(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor) -> None:
    """Add a product in float32, also one of bfloat16 matrices: rounding each of many tiles would bias the sum."""
    if a_MK.is_cuda and a_MK.dtype != torch.float32:
        sum_MN += torch.mm(a_MK, b_KN, out_dtype=torch.float32)
    else:
        sum_MN.addmm_(a_MK.float(), b_KN.float())
