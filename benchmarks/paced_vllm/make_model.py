"""Make a tiny Qwen3 model with random weights and a tokenizer, without any download.

``python make_model.py FOLDER`` writes a configuration and a tokenizer, enough for ``vllm serve FOLDER --load-format
dummy``. Every token is plain text, so that whatever the model says decodes without half characters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
TEXT = (
    "tokens per second, slots and key-value blocks: what a pool of replicas has",
    "who asks, who is served and who is turned away",
    "0123456789 abcdefghijklmnopqrstuvwxyz",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_tokenizer(vocabulary: int, longest: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with exactly ``vocabulary`` tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([f" w{i}" for i in range(tokenizer.get_vocab_size(), vocabulary)])
    if tokenizer.get_vocab_size() != vocabulary:
        raise SystemExit(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, wanted {vocabulary}; give more")
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=longest
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def make_config(args: argparse.Namespace) -> Qwen3Config:
    """Return the configuration of a small Qwen3."""
    config = Qwen3Config(
        vocab_size=args.vocabulary, hidden_size=args.hidden, intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers, num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim, max_position_embeddings=args.longest, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config.architectures = ["Qwen3ForCausalLM"]
    config.torch_dtype = "bfloat16"
    return config


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description="Make a tiny model for vllm serve --load-format dummy.")
    parser.add_argument("folder", type=Path)
    sizes = {"hidden": 256, "layers": 4, "heads": 4, "kv-heads": 2, "head-dim": 64, "vocabulary": 1024}
    for name, default in {**sizes, "longest": 8192}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(args.vocabulary, args.longest).save_pretrained(args.folder)
    make_config(args).save_pretrained(args.folder)
    kv_bytes = 2 * args.layers * args.kv_heads * args.head_dim * 2
    print(f"{args.folder}: {kv_bytes} bytes of KV cache a token (bfloat16)")


if __name__ == "__main__":
    main()
