"""One entry a family: the config.json of a small checkpoint under its published keys, its tokens, its released sizes.

A new family is one entry of `TINY_FAMILIES`. Values are the released ones, but for sizes and ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LLAMA_HEADERS = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHAT_ML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES = (
    "<role>SYSTEM</role>detailed thinking off<|role_end|>{% for message in messages %}"
    "<role>{{ 'HUMAN' if message['role'] == 'user' else 'ASSISTANT' }}</role>{{ message['content'] }}<|role_end|>"
    "{% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n{{ message['content'] }}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
BRACKETS = (
    "[CLS]{% for message in messages %}[Question]{{ message['content'] }}[/Question]{% endfor %}"
    "{% if add_generation_prompt %}[Answer]{% endif %}"
)
USER_ASSISTANT = "USER: \n{% for message in messages %}{{ message['content'] }}{% endfor %} ASSISTANT:"

HEADER_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MMADA_TOKENS = ("<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>", "<|ipad|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyFamily:
    """What a random checkpoint of a family is made of."""

    config: Mapping[str, Any]
    """config.json without ids and vocabulary sizes, at tiny sizes."""
    ids: Mapping[str, str]
    """Keys (see `config_files.place_of`) and the token whose id stands there."""
    special_tokens: tuple[str, ...]
    """Of the tokenizer, in order."""
    chat_template: str
    bos_token: str
    eos_token: str
    mask_token: str | None = None
    """Named in tokenizer_config.json, where the family finds its ids there."""
    vocabulary_keys: tuple[str, ...] = ("vocab_size",)
    """Keys of config.json that hold the rows of the embedding."""
    layers_key: str = "num_hidden_layers"
    width_key: str = "hidden_size"
    text_rows_key: str | None = None
    """Key of config.json that holds the rows of the embedding that come before the image codes."""
    rounding: int = 32
    """The text's rows are a multiple of this."""
    codebook_size: int = 0
    """Image codes behind the text's rows."""
    extra_rows: int = 0
    """Rows besides: special tokens that the tokenizer does not hold, the mask."""
    releases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values of config.json at released sizes, by the name of the size; dotted where nested."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further JSON files of the folder."""
    weights: str = "model"
    """How the weights' files begin."""


LLADA_BODY: dict[str, Any] = {
    "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 128, "mlp_ratio": 4,
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "attention_dropout": 0.0,
    "attention_layer_norm": False, "attention_layer_norm_with_affine": True, "bias_for_layer_norm": False,
    "block_group_size": 1, "block_type": "llama", "embedding_dropout": 0.0, "flash_attention": False,
    "include_bias": False, "include_qkv_bias": False, "init_cutoff_factor": None, "init_device": "cpu",
    "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "max_sequence_length": 4096, "multi_query_attention": None, "precision": "amp_bf16",
    "residual_dropout": 0.0, "rms_norm_eps": 1e-5, "rope": True, "rope_full_precision": True, "rope_theta": 500000.0,
    "scale_logits": False, "tie_word_embeddings": False, "use_cache": False, "weight_tying": False,
}  # fmt: skip
LLADA_8B = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12288}
LLAMA_BODY: dict[str, Any] = {
    "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
    "intermediate_size": 128, "max_position_embeddings": 2048, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0,
    "tie_word_embeddings": False, "use_cache": False,
}  # fmt: skip
QWEN_BODY = LLAMA_BODY | {"max_window_layers": 28, "sliding_window": None, "use_sliding_window": False}
LLAVA: dict[str, Any] = {
    "image_aspect_ratio": "anyres", "mm_hidden_size": 48, "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "model_type": "llava_llada",
    "tokenizer_padding_side": "right", "use_mm_proj": True,
}  # fmt: skip
TINY_TOWER = {
    "image_size": 56, "patch_size": 8, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers_in_file": 2,
    "num_attention_heads": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
LLADA_IDS = {"mask_token_id": "<|mdm_mask|>", "eos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>"}
LLADA_TEXT: dict[str, Any] = {
    "ids": LLADA_IDS,
    "special_tokens": ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", *HEADER_TOKENS),
    "chat_template": LLAMA_HEADERS,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
}
CHAT_ML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SDAR_TEXT: dict[str, Any] = {
    "ids": {"mask_token_id": "<|MASK|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>",
            "bos_token_id": "<|endoftext|>"},
    "special_tokens": (*CHAT_ML_TOKENS, "<|MASK|>"),
    "chat_template": CHAT_ML,
    "bos_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
}  # fmt: skip
QWEN3_BODY = QWEN_BODY | {"attention_bias": False, "block_size": 4, "fuse_cross_entropy": False, "head_dim": 16}
ROLE_TEXT: dict[str, Any] = {
    "ids": {"mask_token_id": "<|mask|>", "eos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>"},
    "special_tokens": ("<|startoftext|>", "<|endoftext|>", "<|mask|>", "<role>", "</role>", "<|role_end|>"),
    "chat_template": ROLES,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
}
LLADA2_BODY: dict[str, Any] = {
    "attention_dropout": 0.0, "block_size": 4, "embedding_dropout": 0.0, "first_k_dense_replace": 1, "head_dim": 16,
    "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
    "max_position_embeddings": 16384, "max_window_layers": 28, "moe_intermediate_size": 32,
    "moe_router_enable_expert_bias": True, "n_group": 4, "norm_head": False, "norm_softmax": False,
    "norm_topk_prob": True, "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 4,
    "num_hidden_layers": 3, "num_key_value_heads": 2, "num_shared_experts": 1, "output_dropout": 0.0,
    "output_router_logits": False, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 600000, "rotary_dim": 8, "routed_scaling_factor": 2.5, "router_dtype": "fp32",
    "score_function": "sigmoid", "sliding_window": 4096, "tie_word_embeddings": False, "topk_group": 2,
    "use_bias": False, "use_cache": False, "use_qk_norm": True, "use_qkv_bias": False, "use_sliding_window": False,
    "architectures": ["LLaDA2MoeModelLM"],
}  # fmt: skip
LLADA2_MINI = {
    "hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
    "rotary_dim": 64, "intermediate_size": 5120, "num_experts": 256, "num_experts_per_tok": 8,
    "moe_intermediate_size": 512, "n_group": 8, "topk_group": 4, "vocab_size": 157184, "block_size": 32,
}  # fmt: skip
LLADA2_RELEASES = {
    "mini": LLADA2_MINI,
    "flash": LLADA2_MINI | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 9216,
        "moe_intermediate_size": 1024,
    },
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma", "canvas_length": 8,
    "initializer_range": 0.02, "tie_word_embeddings": True,
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "final_logit_softcapping": 30.0, "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 64, "initializer_range": 0.02,
        "intermediate_size": 96, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": 4096, "model_type": "diffusion_gemma_text", "moe_intermediate_size": 32,
        "num_attention_heads": 4, "num_experts": 8, "num_hidden_layers": 3, "num_key_value_heads": 2,
        "per_layer_config": {"2": {"head_dim": 32, "num_key_value_heads": 1}}, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 8, "tie_word_embeddings": True, "top_k_experts": 2, "use_bidirectional_attention": "vision",
    },
    "vision_config": {
        "attention_bias": False, "attention_dropout": 0.0, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 131072,
        "model_type": "gemma4_vision", "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "patch_size": 4, "pooling_kernel_size": 2, "position_embedding_size": 64, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "axial"}, "standardize": False,
        "use_clipped_linears": False,
    },
}  # fmt: skip
GEMMA_26B: dict[str, Any] = {"canvas_length": 256} | {
    f"text_config.{key}": value
    for key, value in {
        "hidden_size": 2816, "num_hidden_layers": 30, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 256, "per_layer_config": {"5": {"head_dim": 512, "num_key_value_heads": 2}},
        "layer_types": [*["sliding_attention"] * 5, "full_attention"], "intermediate_size": 2112,
        "moe_intermediate_size": 704, "num_experts": 128, "top_k_experts": 8, "vocab_size": 262144,
        "sliding_window": 1024,
    }.items()
} | {
    f"vision_config.{key}": value
    for key, value in {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 72, "patch_size": 16, "pooling_kernel_size": 3,
        "position_embedding_size": 10240, "standardize": True,
    }.items()
}  # fmt: skip
"""The pattern of layers is repeated to their number. As large as the released files, but for these' headers."""
SHOWO_RELEASE = {
    "llm_model_path": "microsoft/phi-1_5", "llm_vocab_size": 50295, "vocab_size": 58498, "codebook_size": 8192,
    "num_vq_tokens": 256, "phi_config.hidden_size": 2048, "phi_config.intermediate_size": 8192,
    "phi_config.num_hidden_layers": 24, "phi_config.num_attention_heads": 32, "phi_config.num_key_value_heads": 32,
}  # fmt: skip
BERT_TEXT: dict[str, Any] = {
    "special_tokens": ("[PAD]", "[CLS]", "[SEP]", "[MASK]"),
    "chat_template": BRACKETS,
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "mask_token": "[MASK]",
}
BERT_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
             "vocab_size": 30522}  # fmt: skip
BERT_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
MODERNBERT_BASE = {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 12,
                   "vocab_size": 50368}  # fmt: skip
MODERNBERT_LARGE = {"hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28, "num_attention_heads": 16}

TINY_FAMILIES: dict[str, TinyFamily] = {
    "llada": TinyFamily(
        config=LLADA_BODY | {"architectures": ["LLaDAModelLM"], "model_type": "llada"},
        vocabulary_keys=("vocab_size", "embedding_size"),
        layers_key="n_layers",
        width_key="d_model",
        releases={"8b": LLADA_8B | {"vocab_size": 126464, "embedding_size": 126464}},
        **LLADA_TEXT,
    ),
    "mmada": TinyFamily(
        config=LLADA_BODY | {"architectures": ["MMadaModelLM"], "model_type": "mmada", "codebook_size": 16,
                             "num_new_special_tokens": 0, "num_vq_tokens": 16},
        vocabulary_keys=("vocab_size", "embedding_size", "new_vocab_size"),
        layers_key="n_layers",
        width_key="d_model",
        text_rows_key="llm_vocab_size",
        codebook_size=16,
        releases={"8b": LLADA_8B | {"vocab_size": 134656, "embedding_size": 134656, "new_vocab_size": 134656,
                                    "llm_vocab_size": 126464, "codebook_size": 8192, "num_vq_tokens": 1024}},
        **LLADA_TEXT | {"special_tokens": (*LLADA_TEXT["special_tokens"], *MMADA_TOKENS)},
    ),
    "dream": TinyFamily(
        config=QWEN_BODY | {"architectures": ["DreamModel"], "model_type": "Dream"},
        ids={"mask_token_id": "<|mask|>", "eos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>",
             "bos_token_id": "<|endoftext|>"},
        special_tokens=(*CHAT_ML_TOKENS, "<|mask|>"),
        chat_template=CHAT_ML,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        releases={"7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                         "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}},
    ),
    "sdar": TinyFamily(
        config=QWEN3_BODY | {"architectures": ["SDARForCausalLM"], "model_type": "sdar"},
        releases={"8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128,
                         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936}},
        **SDAR_TEXT,
    ),
    "sdar_moe": TinyFamily(
        config=QWEN3_BODY | {"architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe",
                             "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 32,
                             "norm_topk_prob": True, "num_experts": 8, "num_experts_per_tok": 2,
                             "output_router_logits": False, "router_aux_loss_coef": 0.001},
        releases={"30b-a3b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "head_dim": 128,
                              "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936,
                              "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}},
        **SDAR_TEXT,
    ),
    "llada_v": TinyFamily(
        config=LLAMA_BODY | LLAVA | {
            "architectures": ["LlavaLLaDAModelLM"], "attention_bias": False, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "num_key_value_heads": 4, "max_position_embeddings": 16384,
            "image_aspect_ratio": "anyres_max_4", "image_grid_pinpoints": [[56, 56], [56, 112], [112, 56], [112, 112]],
            "mm_newline_position": "one_token", "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": None,
            "mm_vision_tower": "tiny SigLIP, in these files", "pretraining_tp": 1, "tokenizer_model_max_length": 8192,
            "_tiny_vision": TINY_TOWER,
        },
        releases={"8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
                         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 126464,
                         "mm_hidden_size": 1152, "mm_vision_tower": "google/siglip2-so400m-patch14-384",
                         "_tiny_vision": None, "image_grid_pinpoints": [
                             [384 * width, 384 * height] for width in range(1, 7) for height in range(1, 7)]}},
        **LLADA_TEXT,
    ),
    "lavida": TinyFamily(
        config=LLADA_BODY | LLAVA | {
            "architectures": ["LlavaLladaForMaskedDiffusion"],
            "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
            "mm_newline_position": "grid", "mm_resampler_type": None, "mm_spatial_pool_mode": "bilinear",
            "mm_spatial_pool_stride": 2, "mm_vision_tower": "tiny SigLIP, in these files",
            "tokenizer_model_max_length": 4096, "_tiny_vision": TINY_TOWER,
        },
        vocabulary_keys=("vocab_size", "embedding_size"),
        layers_key="n_layers",
        width_key="d_model",
        releases={"8b": LLADA_8B | {"vocab_size": 126464, "embedding_size": 126464, "mm_hidden_size": 1152,
                                    "mm_vision_tower": "google/siglip-so400m-patch14-384", "_tiny_vision": None,
                                    "image_grid_pinpoints": [
                                        [384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]}},
        **LLADA_TEXT,
    ),
    "llada_moe": TinyFamily(
        config={
            "architectures": ["LLaDAMoEModelLM"], "model_type": "lladamoe", "attention_bias": False,
            "attention_dropout": 0.0, "clip_qkv": None, "dense_intermediate_size": 96, "expert_intermediate_size": 32,
            "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "max_position_embeddings": 8192,
            "moe_layer_freq": [1, 1, 1], "moe_router_enable_expert_bias": False, "norm_topk_prob": None,
            "moe_router_score_function": "softmax", "num_attention_heads": 4, "num_experts": 16,
            "num_experts_per_tok": 4, "num_hidden_layers": 3, "num_key_value_heads": 4, "output_router_logits": False,
            "partial_rotary_factor": 1, "qk_layernorm": True, "rms_norm_eps": 1e-5, "rope_scaling": None,
            "rope_theta": 50000, "routed_scaling_factor": 1, "router_aux_loss_coef": 0.01, "router_num_group": None,
            "router_topk_group": None, "shared_expert_intermediate_size": None, "tie_word_embeddings": False,
            "use_cache": False,
        },
        releases={"7b-a1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
                             "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
                             "expert_intermediate_size": 1024, "vocab_size": 157184}},
        **ROLE_TEXT,
    ),
    "llada2": TinyFamily(
        config=LLADA2_BODY | {"model_type": "llada2_moe"}, releases=LLADA2_RELEASES, **ROLE_TEXT
    ),
    "llada21": TinyFamily(
        config=LLADA2_BODY | {"model_type": "llada21_moe"}, releases=LLADA2_RELEASES, **ROLE_TEXT
    ),
    "diffusion_gemma": TinyFamily(
        config=GEMMA,
        ids={"text_config.eos_token_id": "<eos>", "text_config.bos_token_id": "<bos>",
             "text_config.pad_token_id": "<pad>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>",
             "image_token_id": "<|image|>"},
        special_tokens=("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>"),
        chat_template=TURNS,
        bos_token="<bos>",
        eos_token="<eos>",
        vocabulary_keys=("text_config.vocab_size",),
        layers_key="text_config.num_hidden_layers",
        width_key="text_config.hidden_size",
        releases={"26b-a4b": GEMMA_26B},
        files={"generation_config.json": {"confidence_threshold": None, "max_denoising_steps": None, "t_max": None,
                                          "sampler_config": None, "stability_threshold": None, "t_min": None}},
    ),
    "showo": TinyFamily(
        config={"_class_name": "Showo", "_diffusers_version": "0.32.2", "codebook_size": 16, "num_vq_tokens": 16,
                "llm_model_path": "phi_config", "load_from_showo": True, "w_clip_vit": False},
        ids={"phi_config.eos_token_id": "<|endoftext|>", "phi_config.bos_token_id": "<|endoftext|>"},
        special_tokens=("<|endoftext|>",),
        chat_template=USER_ASSISTANT,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        layers_key="phi_config.num_hidden_layers",
        width_key="phi_config.hidden_size",
        text_rows_key="llm_vocab_size",
        rounding=1,
        codebook_size=16,
        extra_rows=11,
        releases={"256": SHOWO_RELEASE, "512": SHOWO_RELEASE | {"num_vq_tokens": 1024}},
        files={"phi_config/config.json": {
            "model_type": "phi", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "partial_rotary_factor": 0.5, "qk_layernorm": True,
            "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        }},
    ),
    "bert": TinyFamily(
        config={
            "architectures": ["BertForMaskedLM"], "model_type": "bert", "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 64, "initializer_range": 0.02,
            "intermediate_size": 128, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
            "num_attention_heads": 4, "num_hidden_layers": 2, "tie_word_embeddings": True, "type_vocab_size": 2,
        },
        releases={"base": BERT_BASE, "large": BERT_BASE | BERT_LARGE},
        **BERT_TEXT | {"ids": {"pad_token_id": "[PAD]"}},
    ),
    "modernbert": TinyFamily(
        config={
            "architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert", "attention_bias": False,
            "attention_dropout": 0.0, "classifier_activation": "gelu", "classifier_bias": False, "decoder_bias": True,
            "embedding_dropout": 0.0, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
            "hidden_activation": "gelu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
            "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False,
            "mlp_dropout": 0.0, "norm_bias": False, "norm_eps": 1e-5, "num_attention_heads": 4,
            "num_hidden_layers": 3, "tie_word_embeddings": True,
        },
        releases={"base": MODERNBERT_BASE, "large": MODERNBERT_BASE | MODERNBERT_LARGE},
        **BERT_TEXT | {"ids": {"pad_token_id": "[PAD]", "cls_token_id": "[CLS]", "sep_token_id": "[SEP]",
                               "eos_token_id": "[SEP]", "bos_token_id": "[CLS]"}},
    ),
}  # fmt: skip
"""By the family's short name."""
