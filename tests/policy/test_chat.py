"""Chat to tokens: turn by turn gives what the whole gives, and what was sampled is never encoded again."""

import random

import pytest
from transformers import PreTrainedTokenizerFast

from policy.chat import Chat
from policy.tiny import BOS, CHAT_TEMPLATE, TURN_END, train_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '\n' + m['content'] + '<|eot_id|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}"
)
"""As in ChatML: a newline follows the end mark, which the policy that stops at the mark never samples."""
TEMPLATES = [CHAT_TEMPLATE, CHATML]
WORDS = "the sum of 12 and 30 is \\boxed{42}\n so <tool: python>\nprint(6 * 7)\n</tool> żółw"


def small_tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer([WORDS] * 4, 330)
    tokenizer.chat_template = template
    return tokenizer


def conversation(rng: random.Random, rounds: int) -> list[dict[str, str]]:
    """Asked, then assistant and tool in turn, ending with the assistant."""

    def text() -> str:
        """Starts with a letter: a space would melt into a newline before it, which a policy that samples cannot do."""
        return "a" + "".join(rng.choice(WORDS) for _ in range(rng.randrange(20)))

    messages = [{"role": "system", "content": text()}, {"role": "user", "content": text()}]
    for number in range(rounds):
        if number:
            messages += [{"role": "tool", "name": "python", "content": text()}] * rng.choice([1, 2])
        messages.append({"role": "assistant", "content": text()})
    return messages


@pytest.mark.parametrize("template", TEMPLATES)
def test_turn_by_turn_equals_the_whole(template: str) -> None:
    chat, rng = Chat(small_tokenizer(template)), random.Random(0)
    for rounds in (1, 2, 3, 4):
        messages = conversation(rng, rounds)
        ids: list[int] = []
        since: list[dict[str, str]] = []
        for message in messages:
            if message["role"] == "assistant":
                ids += chat.answer(since, ids) if ids else chat.opening(since)
                ids += [*chat.encode(message["content"]), chat.stop_ids[0]]
                since = []
            else:
                since.append(message)
        whole = chat.encode(chat.tokenizer.apply_chat_template(messages, tokenize=False))
        assert ids == whole[: len(ids)]
        assert chat.tokenizer.decode(whole[len(ids) :]).strip() == "", "nothing but the template's own newline is left"
        assert chat.conversation(messages)[0] == ids


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_mask_holds_what_the_assistant_wrote_and_its_end_marks(template: str) -> None:
    chat = Chat(small_tokenizer(template))
    messages = conversation(random.Random(1), 3)
    ids, mask = chat.conversation(messages)
    spoken = [token for token, ours in zip(ids, mask, strict=True) if ours]
    said = [message["content"] + TURN_END for message in messages if message["role"] == "assistant"]
    assert chat.tokenizer.decode(spoken) == "".join(said)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_sampled_end_mark_is_not_doubled_and_a_missing_one_is_added(template: str) -> None:
    chat = Chat(small_tokenizer(template))
    (end,) = chat.stop_ids
    assert chat.tokenizer.decode([end]) == TURN_END
    heard = [{"role": "user", "content": "go on"}]
    ended, cut = chat.answer(heard, [*chat.encode("yes"), end]), chat.answer(heard, chat.encode("yes"))
    assert [end, *ended] == cut
    assert cut.count(end) == 2, "the turn's and the message's"


def test_sampled_tokens_are_kept_as_they_are() -> None:
    """A spelling that the tokenizer would never choose survives, for `answer` looks at nothing but its end."""
    chat = Chat(small_tokenizer())
    odd = [token for letter in "the sum" for token in chat.encode(letter)]
    assert odd != chat.encode("the sum") and chat.decode(odd) == "the sum"
    assert chat.answer([], [*odd, chat.stop_ids[0]]) == chat.answer([], [*chat.encode("x"), chat.stop_ids[0]])


def test_control_tokens_are_left_out_of_the_text() -> None:
    chat = Chat(small_tokenizer())
    assert chat.decode([*chat.encode(BOS), *chat.encode("so żółw"), *chat.stop_ids]) == "so żółw"


def test_a_tokenizer_without_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no chat template; expected one in its folder"):
        Chat(small_tokenizer(None))
