"""Scoring against plain full-logits softmax, packed against alone, and how much memory it holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CwmConfig, CwmForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from policy.head import TILE_BYTES, score
from policy.model import layers, load, recompute_layers, token_logprobs

LENGTHS = ((37, 9, 1, 17), (30, 30))
"""Documents of two rows of 64 and 60 tokens; some longer, some shorter than the sliding window of 12."""


def small_cwm(
    folder: Path, *, vocab: int = 97, hidden: int = 32, layers: int = 4, window: int = 12, seed: int = 0
) -> Path:
    """Write a random CwmForCausalLM with sliding and full layers and grouped keys; untied."""
    torch.manual_seed(seed)
    config = CwmConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=1024,
        sliding_window=window,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    )
    CwmForCausalLM(config).save_pretrained(folder)
    return folder


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and restarting positions; the second row ends in padding, a document of its own."""
    torch.manual_seed(1)
    ids_BT = torch.randint(0, 97, (2, 64))
    position_BT = torch.stack([torch.cat([torch.arange(n) for n in (*row, 64 - sum(row)) if n]) for row in LENGTHS])
    return ids_BT, position_BT


def alone(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """The reference: each document by itself, all its logits, one softmax; 0.0 at position 0 and in padding."""
    out_BT = torch.zeros(ids_BT.shape)
    for b, row in enumerate(LENGTHS):
        start = 0
        for length in row:
            ids = ids_BT[b : b + 1, start : start + length]
            logprob = F.log_softmax(model(input_ids=ids).logits.float(), dim=-1)
            out_BT[b, start + 1 : start + length] = logprob[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1).detach()
            start += length
    return out_BT


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
def test_packed_logprobs_equal_those_of_each_document_alone(attention: str, tmp_path: Path) -> None:
    path = small_cwm(tmp_path / "m")
    ids_BT, position_BT = packed()
    expected_BT = alone(load(path, attention="sdpa"), ids_BT)
    got_BT, _ = token_logprobs(load(path, attention=attention), ids_BT, position_BT)
    real_BT = expected_BT != 0
    assert real_BT.sum() == 64 + 60 - 6
    torch.testing.assert_close(got_BT[real_BT], expected_BT[real_BT], atol=1e-5, rtol=0)
    assert (got_BT[position_BT == 0] == 0).all()


def test_the_window_and_the_documents_matter_in_this_test(tmp_path: Path) -> None:
    """Guards the test above: without the window, or without the restarts, the numbers are far away."""
    ids_BT, position_BT = packed()
    windowed, _ = token_logprobs(load(small_cwm(tmp_path / "a")), ids_BT, position_BT)
    wide, _ = token_logprobs(load(small_cwm(tmp_path / "b", window=64)), ids_BT, position_BT)
    joined, _ = token_logprobs(load(tmp_path / "a"), ids_BT, torch.arange(64).expand(2, 64))
    assert (windowed - wide).abs().max() > 1e-2
    assert (windowed - joined).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["documents", "sdpa"])
def test_gradient_and_entropy_equal_those_of_full_logits(attention: str, tmp_path: Path) -> None:
    path = small_cwm(tmp_path / "m")
    ids_T = torch.randint(0, 97, (1, 50))
    mask_T = torch.rand(1, 50) < 0.4
    mask_T[0, 0] = False
    weight_T = torch.randn(1, 50)
    ours, plain = load(path, attention=attention), load(path, attention="sdpa")
    got, entropy = token_logprobs(ours, ids_T, torch.arange(50)[None], mask_T)
    (got * weight_T).sum().backward()
    all_V = F.log_softmax(plain(input_ids=ids_T).logits, dim=-1)[:, :-1]
    expected = all_V.gather(2, ids_T[:, 1:, None]).squeeze(2) * mask_T[:, 1:]
    (expected * weight_T[:, 1:]).sum().backward()
    torch.testing.assert_close(got[:, 1:], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy[:, 1:], -(all_V.exp() * all_V).sum(-1) * mask_T[:, 1:], atol=1e-5, rtol=0)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_a_mask_with_nothing_to_score_still_has_a_gradient(tmp_path: Path) -> None:
    model = load(small_cwm(tmp_path / "m"))
    ids, nothing = torch.ones(1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.bool)
    logprob, entropy = token_logprobs(model, ids, torch.arange(5)[None], nothing)
    assert not logprob.any() and not entropy.any()
    logprob.sum().backward()


class Shapes(TorchDispatchMode):
    """The shape of everything that operators make, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operator(*args, **(kwargs or {}))
        self.seen += [(str(operator), x.shape) for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        return made


def test_only_a_tile_of_logits_exists_at_a_time(tmp_path: Path) -> None:
    """At a vocabulary of 32 thousand nothing of [T, V] is made or kept, in forward or backward."""
    vocab, tokens = 32_000, 700
    model = load(small_cwm(tmp_path / "m", vocab=vocab, hidden=16, layers=1))
    ids = torch.randint(0, vocab, (1, tokens))
    mask = torch.ones(1, tokens, dtype=torch.bool)
    with Shapes() as shapes:
        logprob, _ = token_logprobs(model, ids, torch.arange(tokens).remainder(200)[None], mask)
        logprob.sum().backward()
    largest = max(shape.numel() for _, shape in shapes.seen)
    assert TILE_BYTES["cpu"] // 4 <= largest <= vocab * 16, "nothing larger than the head's own weight"


def test_only_masked_tokens_reach_the_head(tmp_path: Path) -> None:
    model = load(small_cwm(tmp_path / "m"))
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[0, 30:37] = True
    with Shapes() as shapes:
        token_logprobs(model, torch.ones(1, 40, dtype=torch.int64), torch.arange(40)[None], mask)
    products = [shape for operator, shape in shapes.seen if operator.startswith("aten.mm")]
    assert [shape[0] for shape in products if shape[1] == 97] == [7]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "vocab"), [(1, 5), (300, 2500), (257, 1025), (0, 9)])
def test_tiles_give_the_softmax_and_its_gradient(tokens: int, vocab: int, bias: bool) -> None:
    """Several tiles of tokens and of words, the last of them narrow; in float32 against float64."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(tokens, 8, requires_grad=True)
    weight_VD = (3 * torch.randn(vocab, 8)).requires_grad_()
    bias_V = torch.randn(vocab, requires_grad=True) if bias else None
    target_N, grad_N = torch.randint(0, vocab, (tokens,)), torch.randn(tokens)
    given = [x for x in (hidden_ND, weight_VD, bias_V) if x is not None]

    got_N, entropy_N = score(hidden_ND, weight_VD, bias_V, target_N)
    got = torch.autograd.grad((got_N * grad_N).sum(), given)

    exact = [x.detach().double().requires_grad_() for x in given]
    all_NV = F.log_softmax(F.linear(*exact), dim=-1)
    expected_N = all_NV.gather(1, target_N[:, None]).squeeze(1)
    expected = torch.autograd.grad((expected_N * grad_N).sum(), exact)
    torch.testing.assert_close(got_N, expected_N.float(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropy_N, -(all_NV.exp() * all_NV).sum(1).float(), atol=2e-5, rtol=1e-5)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b.float(), atol=2e-5, rtol=1e-5)


def test_under_autocast_sums_stay_in_float32() -> None:
    """Products of bfloat16 have its precision, also at 40 tiles of words and 4 of tokens."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(1000, 16, requires_grad=True)
    weight_VD = torch.randn(40_000, 16, requires_grad=True)
    target_N = torch.randint(0, 40_000, (1000,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low_N, _ = score(hidden_ND, weight_VD, None, target_N)
    low = torch.autograd.grad(low_N.sum(), (hidden_ND, weight_VD))
    high_N, _ = score(hidden_ND, weight_VD, None, target_N)
    high = torch.autograd.grad(high_N.sum(), (hidden_ND, weight_VD))
    assert low_N.dtype == torch.float32 and not torch.equal(low_N, high_N)
    assert (low_N - high_N).abs().mean() < 0.02
    for a, b in zip(low, high, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.01 * b.norm()


def test_recomputed_layers_give_the_same_gradients_bit_for_bit_and_keep_less(tmp_path: Path) -> None:
    path = small_cwm(tmp_path / "m")
    ids_BT, position_BT = packed()
    kept: dict[bool, int] = {}
    grads: dict[bool, list[Any]] = {}
    for again in (False, True):
        model = load(path)
        if again:
            recompute_layers(model)
        size: list[int] = []

        def keep(tensor: torch.Tensor, size: list[int] = size) -> torch.Tensor:
            size.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprob_BT, _ = token_logprobs(model, ids_BT, position_BT)
        kept[again] = sum(size)
        logprob_BT.sum().backward()
        grads[again] = [p.grad for p in model.parameters()]
    assert len(layers(model)) == 4
    assert all(torch.equal(a, b) for a, b in zip(grads[False], grads[True], strict=True))
    assert kept[True] < kept[False] / 3


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no model folder at"):
        load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected config.json, it holds notes.txt"):
        load(tmp_path)
    path = small_cwm(tmp_path / "m")
    with pytest.raises(ValueError, match="available: float32, bfloat16, float16"):
        load(path, dtype="fp8")
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        load(path)


def test_load_refuses_missing_weights_and_unusual_heads(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import Gemma2Config, Gemma2ForCausalLM

    path = small_cwm(tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the model's weights, the first of them lm_head.weight"):
        load(path)
    capped = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        initializer_range=1.0,
    )
    Gemma2ForCausalLM(capped).save_pretrained(tmp_path / "capped")
    with pytest.raises(ValueError, match="more to its logits than a linear head"):
        load(tmp_path / "capped")


def test_another_architecture_loads_too_and_its_dropout_is_off(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "g")
    ids = torch.arange(10)[None]
    sdpa = load(tmp_path / "g", attention="sdpa")
    got, _ = token_logprobs(load(tmp_path / "g"), ids, ids)
    expected = F.log_softmax(sdpa(input_ids=ids).logits, dim=-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(got[:, 1:], expected, atol=1e-5, rtol=0)
