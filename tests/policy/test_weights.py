"""Weights on their way: damage is seen, and so is an engine that holds something else than it was sent."""

import math
from dataclasses import replace

import pytest
import torch

from policy.engines import Swapped
from policy.engines.vllm import largest
from policy.weights import Weights, read_back


def sent() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(10, 4),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(8, 4),
        "model.layers.0.self_attn.k_proj.weight": torch.randn(4, 4),
        "model.layers.0.self_attn.v_proj.weight": torch.randn(4, 4),
        "model.norm.weight": torch.randn(4),
        "lm_head.weight": torch.randn(10, 4),
    }


def held(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As vLLM holds them: attention's matrices in one, the vocabulary padded, the output matrix repacked away."""
    padding = torch.zeros(6, 4)
    attention = [given[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    return {
        "model.embed_tokens.weight": torch.cat([given["model.embed_tokens.weight"], padding]),
        "model.layers.0.self_attn.qkv_proj.weight": torch.cat(attention),
        "model.norm.weight": given["model.norm.weight"].clone(),
        "lm_head.weight": torch.empty(0),
    }


def test_damage_on_the_way_is_seen() -> None:
    weights = Weights.pack(sent(), 3)
    assert weights.check() == weights.blob
    damaged = replace(weights, blob=weights.blob[:-1] + bytes([weights.blob[-1] ^ 1]))
    with pytest.raises(ValueError, match="weights of version 3 arrived damaged"):
        damaged.check()


def test_what_is_held_is_counted_and_what_differs_is_named() -> None:
    weights = sent()
    there = held(weights)
    assert read_back(weights, there) == (4 * (10 * 4 + 16 * 4 + 4), [])
    there["model.layers.0.self_attn.qkv_proj.weight"][9, 0] += 1e-6
    there["model.norm.weight"].zero_()
    equal, differ = read_back(weights, there)
    assert equal == 4 * 10 * 4
    assert sorted(differ) == ["model.layers.0.self_attn.qkv_proj.weight", "model.norm.weight"]


def test_an_engine_of_another_type_is_compared_in_its_own() -> None:
    weights = sent()
    there = {name: tensor.to(torch.bfloat16) for name, tensor in held(weights).items()}
    assert read_back(weights, there)[1] == []
    there["model.norm.weight"][0] += 1
    assert read_back(weights, there)[1] == ["model.norm.weight"]


def test_shards_and_unknown_names_are_left_to_the_canary() -> None:
    weights = sent()
    assert read_back(weights, {"model.embed_tokens.weight": torch.zeros(5, 4), "x": torch.zeros(4)}) == (0, [])


def test_figures_of_a_publish() -> None:
    row = max(Swapped(0.02, bytes=100), Swapped(0.05, bytes=100, read_back=0.5)).row(0.2)
    assert (row["pause_s"], row["bytes_per_s"], row["read_back"]) == (0.05, 500, 0.5)
    assert row["overlap"] == pytest.approx(0.75)
    assert Swapped(0.0).row(0.0)["overlap"] == 0


@pytest.mark.parametrize("place", range(3))
def test_a_canary_that_is_not_a_number_anywhere_is_never_near_enough(place: int) -> None:
    gaps = [1e-5, 2e-5]
    gaps.insert(place, math.nan)
    assert math.isnan(largest(gaps)) and not largest(gaps) <= 1e-3
    assert largest([1e-5, 2e-5, 0.0]) == 2e-5
