"""Write a fresh random tiny policy in the layout of the released MMaDA checkpoints.

``python -m unigrpo.quickstart.makers.policy OUT --seed 0`` makes what ``recipes/tiny_sft.yaml`` trains. The folder
holds config.json, generation_config.json, tokenizer.json, tokenizer_config.json and model.safetensors, with the key
names, the special tokens and the image-code offset (the length of the tokenizer) of the release; only the
sizes are small.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models

D_MODEL = 128
N_LAYERS = 4
N_HEADS = 4
MLP_HIDDEN_SIZE = 320
CODEBOOK_SIZE = 16
NUM_IMAGE_CODES = 16
ROPE_THETA = 100.0
"""500000 in the release, whose rows are long: at 50 tokens most of its rotary angles would hardly turn."""

RELEASED: dict[str, Any] = json.loads("""
{"architectures": ["MMadaModelLM"], "model_type": "mmada", "activation_type": "silu", "alibi": false,
"alibi_bias_max": 8.0, "attention_dropout": 0.0, "attention_layer_norm": false, "attention_layer_norm_with_affine":
true, "bias_for_layer_norm": false, "block_group_size": 1, "block_type": "llama", "embedding_dropout": 0.0,
"flash_attention": false, "gradient_checkpointing": false, "include_bias": false, "include_qkv_bias": false,
"init_cutoff_factor": null, "init_device": "cpu", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": false,
"layer_norm_type": "rms", "layer_norm_with_affine": true, "max_sequence_length": 4096, "mlp_ratio": 4,
"multi_query_attention": null, "num_new_special_tokens": 0, "precision": "amp_bf16", "residual_dropout": 0.0,
"rms_norm_eps": 1e-05, "rope": true, "rope_full_precision": true, "scale_logits": false, "tie_word_embeddings":
false, "torch_dtype": "float32", "use_cache": false, "weight_tying": false}
""")
"""Keys of config.json whose values are the release's."""

SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|soi|>",
    "<|eoi|>",
    "<|t2i|>",
    "<|mmu|>",
    "<|ipad|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
THINK_TAGS = ("<think>", "</think>")
WORDS = tuple(
    "user assistant system red green blue yellow purple circle square triangle left right above below of the is one "
    "what color shape yes no".split()
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)


def build_tokenizer(special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """Return the tiny tokenizer: whole words, single characters and digits, and bytes for everything else.

    Any text survives encoding and decoding unchanged. Words come with and without a leading space.
    The family's special tokens come after the text's and before the tags of a thought.
    """
    words = [piece for word in dict.fromkeys(WORDS) for piece in (word, f" {word}")]
    characters = list(string.digits + string.ascii_letters + string.punctuation + " \n")
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -30.0) for byte in range(256))]
    pieces += [(character, -8.0) for character in characters if character not in words]
    # A word costs a little more than one character, so that it beats any split into two pieces.
    pieces += [(word, -9.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in THINK_TAGS])
    return tokenizer


def build_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json: every key of the released MMaDA configuration, with the tiny sizes."""
    llm_vocab_size = -(-(tokenizer.get_vocab_size() + 1) // 32) * 32
    bos, eos, mask = (tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"))
    rows = dict.fromkeys(("vocab_size", "embedding_size", "new_vocab_size"), llm_vocab_size + CODEBOOK_SIZE)
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos, "mask_token_id": mask}
    widths = {"d_model": D_MODEL, "mlp_hidden_size": MLP_HIDDEN_SIZE, "n_heads": N_HEADS, "n_kv_heads": N_HEADS}
    others = {"n_layers": N_LAYERS, "codebook_size": CODEBOOK_SIZE, "num_vq_tokens": NUM_IMAGE_CODES}
    return RELEASED | rows | ids | widths | others | {"llm_vocab_size": llm_vocab_size, "rope_theta": ROPE_THETA}


def build_weights(config: dict[str, Any], tokenizer: Tokenizer, seed: int) -> dict[str, np.ndarray]:
    """Return random float32 weights under the released key names, from a generator of their own.

    Matrices are normal with standard deviation 1/sqrt(inputs), those that write to the residual stream divided by
    sqrt(2 layers); embeddings have standard deviation 1, so that a token outweighs what fresh blocks add to it. A word
    after a space starts close to the word itself (correlation 0.95), as the two are in any trained model, so that a
    question's word is soon found again in a thought.
    """
    generator = np.random.default_rng(seed)
    width, hidden, layers, vocab = (config[key] for key in ("d_model", "mlp_hidden_size", "n_layers", "embedding_size"))

    def matrix(outputs: int, inputs: int, gain: float = 1.0) -> np.ndarray:
        return (generator.standard_normal((outputs, inputs)) * gain / np.sqrt(inputs)).astype(np.float32)

    residual_gain = (2 * layers) ** -0.5
    weights = {"model.transformer.wte.weight": matrix(vocab, width, np.sqrt(width))}
    embedding = weights["model.transformer.wte.weight"]
    for word in WORDS:
        plain, spaced = tokenizer.token_to_id(word), tokenizer.token_to_id(f" {word}")
        embedding[spaced] = 0.95 * embedding[plain] + np.float32(1 - 0.95**2) ** 0.5 * embedding[spaced]
    for layer in range(layers):
        prefix = f"model.transformer.blocks.{layer}"
        for name in ("q_proj", "k_proj", "v_proj"):
            weights[f"{prefix}.{name}.weight"] = matrix(width, width)
        weights[f"{prefix}.attn_out.weight"] = matrix(width, width, residual_gain)
        for name in ("ff_proj", "up_proj"):
            weights[f"{prefix}.{name}.weight"] = matrix(hidden, width)
        weights[f"{prefix}.ff_out.weight"] = matrix(width, hidden, residual_gain)
        for name in ("attn_norm", "ff_norm"):
            weights[f"{prefix}.{name}.weight"] = np.ones(width, np.float32)
    weights["model.transformer.ln_f.weight"] = np.ones(width, np.float32)
    weights["model.transformer.ff_out.weight"] = matrix(vocab, width, 0.25)
    return weights


def make_policy(out: Path, seed: int = 0) -> Path:
    """Write the checkpoint folder and return it.

    Raises:
        FileExistsError: if ``out`` already holds a checkpoint.
    """
    if (out / "model.safetensors").exists():
        raise FileExistsError(f"{out} already holds a checkpoint; name a new folder or delete it first")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    config = build_config(tokenizer)
    tokenizer.save(str(out / "tokenizer.json"))
    tokens = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mdm_mask|>",
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
    }
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_sequence_length"],
            "clean_up_tokenization_spaces": False,
            **tokens,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_json(out / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(out / "generation_config.json", {**ids, "use_cache": False})
    save_file(build_weights(config, tokenizer, seed), out / "model.safetensors", metadata={"format": "pt"})
    return out


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Write a fresh random tiny policy in MMaDA's layout.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    arguments = parser.parse_args()
    try:
        make_policy(arguments.out, arguments.seed)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
