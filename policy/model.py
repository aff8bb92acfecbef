"""A causal language model as a scorer of packed tokens. Any Hugging Face folder; the same code on CPU and GPU.

`B` rows, `T` tokens of a row, `N` tokens that are scored, `D` hidden size, `H` heads, `V` vocabulary; `C` tokens by `W`
words are one tile of logits (policy/head.py). A document is one trajectory within a row; its positions start at 0.

Attention, by name:
- `documents` (ours, the default): each document attends within itself, the work grows with the sum of their squared
  lengths. On CPU about twice as fast as `sdpa` at rows of 1,024 tokens, and it needs no [T, T] mask.
- `flash_attention_2`, `flash_attention_3`: the same on GPU in one kernel, from the restarting positions.
- `sdpa`, `eager`: transformers' own packed-sequence detection builds a block-diagonal mask of B * T * T.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from policy.head import score

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DOCUMENTS = "documents"


def load(path: str | Path, *, dtype: str = "float32", attention: str = DOCUMENTS) -> PreTrainedModel:
    """The causal language model in a Hugging Face folder, in evaluation mode: with dropout no ratio would be 1.

    Raises ValueError where there is none, where weights are missing (transformers would invent them), or where its
    logits are more than a linear head on the hidden states (scoring would silently differ from sampling).
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"there is no model folder at {folder}")
    if not (folder / "config.json").is_file():
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"{folder} is no Hugging Face model folder: expected config.json, it holds {held}")
    if dtype not in DTYPES:
        raise ValueError(f"there is no dtype {dtype!r}; available: {', '.join(DTYPES)}")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], attn_implementation=attention, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{folder} cannot be loaded as a causal language model: {error}") from error
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} of the model's weights, the first of them {missing[0]}")
    _check_head(model)
    return model.eval()


class Scorer(nn.Module):
    """`token_logprobs` as a module, so that what shards a module's parameters sees when all of them are needed."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor, position_BT: Tensor, mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return token_logprobs(self.model, ids_BT, position_BT, mask_BT)


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers, the units in which activations are recomputed and weights are sharded.

    Raises ValueError where the architecture does not name them.
    """
    found: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise ValueError(
            f"got {type(model).__name__}, which marks no decoder layers; expected an architecture that does"
        )
    return found


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep only each layer's input for backward and compute the rest again there: about a third more time."""
    for layer in layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def token_logprobs(
    model: PreTrainedModel, ids_BT: Tensor, position_BT: Tensor, mask_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of every token given those before it in its document, and the entropy it was drawn from; nats.

    Both [B, T] float32, 0.0 where `mask_BT` is False and at position 0, which nothing precedes. The gradient flows
    through the log-probabilities only. Of the logits of the masked tokens one tile exists at a time (policy/head.py).
    """
    wanted_BT = position_BT > 0
    if mask_BT is not None:
        wanted_BT = wanted_BT & mask_BT
    where_N = wanted_BT.flatten().nonzero().squeeze(1)
    hidden_ND = _hidden(model, ids_BT, position_BT)[where_N - 1]
    head: Any = model.get_output_embeddings()
    logprob_N, entropy_N = score(hidden_ND, head.weight, head.bias, ids_BT.flatten()[where_N])
    empty_BT = logprob_N.new_zeros(ids_BT.shape)
    return empty_BT.masked_scatter(wanted_BT, logprob_N), empty_BT.masked_scatter(wanted_BT, entropy_N)


def _hidden(model: PreTrainedModel, ids_BT: Tensor, position_BT: Tensor) -> Tensor:
    """Hidden states [B * T, D] before the head. No cache and no attention mask: only then are packed rows detected."""
    attention = str(model.config._attn_implementation)
    kwargs: dict[str, Any] = {}
    if attention == DOCUMENTS or "flash" in attention:
        ids_BT, position_BT = ids_BT.reshape(1, -1), position_BT.reshape(1, -1)
    if attention == DOCUMENTS:
        kwargs["document_lengths"] = _document_lengths(position_BT)
    output = model.base_model(
        input_ids=ids_BT, position_ids=position_BT, attention_mask=None, use_cache=False, return_dict=True, **kwargs
    )
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD.flatten(0, 1)


def _document_lengths(position_1T: Tensor) -> list[int]:
    starts = (position_1T[0] == 0).nonzero().squeeze(1)
    end = starts.new_tensor([position_1T.shape[1]])
    return torch.diff(starts, append=end).tolist()


def _attend_documents(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    document_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document of one flat row: query [1, H, T, D / H], result [1, T, H, D / H]."""
    if document_lengths is None:
        raise ValueError(
            "got no document_lengths; expected token_logprobs to call, or another attention such as `sdpa`"
        )
    out = []
    for q, k, v in zip(*(torch.split(x, document_lengths, dim=2) for x in (query, key, value)), strict=True):
        length = q.shape[2]
        band = None
        if sliding_window is not None and length > sliding_window:
            band = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
        out.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=band, is_causal=band is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        )
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(DOCUMENTS, _attend_documents)


@torch.no_grad()
def _check_head(model: PreTrainedModel) -> None:
    """Compare a few log-probabilities with the model's own logits: soft-capped or rescaled logits would differ."""
    device = model.get_output_embeddings().weight.device
    ids = torch.arange(min(8, model.config.get_text_config().vocab_size), device=device)[None]
    position = torch.arange(ids.shape[1], device=device)[None]
    ours, _ = token_logprobs(model, ids, position)
    logits = model(input_ids=ids, position_ids=position, use_cache=False, document_lengths=[ids.shape[1]]).logits
    theirs = F.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    gap = float((ours[:, 1:] - theirs).abs().max())
    if gap > 1e-3:
        raise ValueError(
            f"{type(model).__name__} does more to its logits than a linear head (log-probabilities differ by "
            f"{gap:.2g}); expected an architecture whose head is one linear layer"
        )
