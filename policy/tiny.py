"""A policy small enough for a laptop: the CWM architecture shrunk, and a byte-level BPE tokenizer of its own.

Architecture facts: transformers `models/cwm` (grouped-query attention, one full layer to three sliding ones, llama3
rope, untied embeddings). Chat format and tool syntax follow CWM's prompting guide; the names of the control tokens are
Llama 3's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CwmConfig, CwmForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
RESERVED = 26
"""Control tokens without a meaning yet, so that a later format needs no new vocabulary."""

EMBEDDING_STD = 0.1
"""With matrices at one over the root of their fan-in; transformers' 0.02 throughout is made for wide models, and needed
three times the steps here before the policy could copy (docs/log.md)."""

CHAT_TEMPLATE = (
    "{{ '" + BOS + "' }}"
    "{% for m in messages %}"
    "{{ '"
    + HEADER
    + "' + (m['role'] + ': ' + m['name'] if m['role'] == 'tool' else m['role']) + '"
    + HEADER_END
    + "' }}"
    "{{ m['content'] + '" + TURN_END + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + HEADER + "assistant" + HEADER_END + "' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that every text has a tokenization; digits stay single, so that numbers can be copied."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?[A-Za-z]+|\n *| ?[^\sA-Za-z\d]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [BOS, EOS, PAD, HEADER, HEADER_END, TURN_END, *(f"<|reserved_{i}|>" for i in range(RESERVED))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=TURN_END, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, context: int
) -> CwmForCausalLM:
    """Random weights from torch's global generator. Every fourth layer and the last are full, the others
    slide over half of `context`."""
    config = CwmConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=context,
        sliding_window=context // 2,
        layer_types=["full_attention" if i % 4 == 0 or i == layers - 1 else "sliding_attention" for i in range(layers)],
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context // 2,
        },
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CwmForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(
                weight, std=EMBEDDING_STD if "embed" in name or "lm_head" in name else weight.shape[1] ** -0.5
            )
    return model
