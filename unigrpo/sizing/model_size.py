"""How large a model is, by its config.json alone and without torch: what memory estimates follow from.

The counts are those of the bodies in `unigrpo.models`, layer by layer; a family that is not counted here is taken for
a pre-norm Llama body without biases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigrpo.models.families import family_name, is_known
from unigrpo.models.files.folders import read_json

Config = Mapping[str, Any]

PHI_1_5 = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
"""``models.showo.PHI_1_5``, which only torch can import."""
SO400M = {
    "image_size": 384,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers_in_file": 26,
}
"""The vision tower that the LLaVA families' configs only name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """The numbers of a config.json that memory follows from."""

    num_layers: int
    width: int
    mlp_width: int
    """Of a mixture of experts: of those that a token goes through together."""
    vocabulary: int
    num_parameters: int
    linears: Mapping[str, int]
    """Inputs and outputs of the linear layers that LoRA wraps by default, summed over the layers, by their names."""

    @classmethod
    def from_config(cls, config: Config) -> ModelSize | None:
        """Read a released layout's names; None where one is missing.

        Args:
            config: the content of a config.json; Show-o's with its language model's under ``phi``, or with the name of
                Phi-1.5 alone.
        """
        tally = _Tally()
        try:
            count = COUNTS.get(family_name(config) if is_known(config) else "", _count_llama)
            body = count(tally, config)
        except KeyError:
            return None
        return cls(
            num_layers=body.num_layers,
            width=body.width,
            mlp_width=body.mlp_width,
            vocabulary=body.vocabulary,
            num_parameters=tally.num_parameters,
            linears=dict(tally.linears),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ModelSize | None:
        """Read a checkpoint's config.json, and the language model's where it lies in a folder beside it."""
        config = read_json(folder / "config.json")
        beside = folder / str(config.get("llm_model_path", "")) / "config.json"
        if "llm_model_path" in config and beside.is_file():
            config["phi"] = read_json(beside)
        return cls.from_config(config)

    def num_adapter_parameters(self, rank: int, targets: list[str] | None) -> int:
        """Return the weights of LoRA of a rank on the named linear layers of the blocks; None is all of them."""
        return rank * sum(count for name, count in self.linears.items() if targets is None or name in targets)


@dataclass(kw_only=True, slots=True)
class _Tally:
    """Weights so far."""

    num_parameters: int = 0
    linears: Counter[str] = field(default_factory=Counter)

    def add(self, *counts: int) -> None:
        self.num_parameters += sum(counts)

    def wrap(self, has_bias: bool = False, **shapes: tuple[int, int]) -> None:
        """Count linear layers that LoRA wraps by default."""
        for name, (wide_in, wide_out) in shapes.items():
            self.num_parameters += wide_in * wide_out + (wide_out if has_bias else 0)
            self.linears[name] += wide_in + wide_out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Body:
    num_layers: int
    width: int
    mlp_width: int
    vocabulary: int


def _first(config: Config, *names: str) -> int:
    for name in names:
        if config.get(name):
            return int(config[name])
    raise KeyError(names[0])


def _heads(config: Config, width: int) -> tuple[int, int, int]:
    """Return the width of all query heads, of all key heads, and of one head."""
    heads = _first(config, "n_heads", "num_attention_heads")
    kv_heads = config.get("n_kv_heads") or config.get("num_key_value_heads") or heads
    if config.get("multi_query_attention") and not config.get("n_kv_heads"):
        kv_heads = 1
    head = config.get("head_dim") or width // heads
    return heads * head, kv_heads * head, head


def _active_width(config: Config) -> int:
    """Return the width of the feed-forward parts that a token goes through together."""
    expert = config.get("moe_intermediate_size") or config.get("expert_intermediate_size")
    chosen = config.get("num_experts_per_tok") or config.get("top_k_experts") or 0
    if expert and chosen:
        return int(expert * (chosen + (config.get("num_shared_experts") or 0)))
    if config.get("mlp_hidden_size") or config.get("intermediate_size") or "mlp_ratio" not in config:
        return _first(config, "mlp_hidden_size", "intermediate_size")
    return int(config["mlp_ratio"] * _first(config, "d_model"))


def _body(config: Config) -> _Body:
    return _Body(
        num_layers=_first(config, "n_layers", "num_hidden_layers"),
        width=_first(config, "d_model", "hidden_size"),
        mlp_width=_active_width(config),
        vocabulary=_first(config, "embedding_size", "vocab_size"),
    )


def _ends(tally: _Tally, body: _Body, *, is_tied: bool) -> None:
    """Count the embedding, the head and the last norm."""
    tally.add(body.vocabulary * body.width * (1 if is_tied else 2), body.width)


def _count_llama(tally: _Tally, config: Config) -> _Body:
    """Count LLaDA's body under its names; also of a model that is not known."""
    config = config.get("text_config") or config
    body = _body(config)
    width, mlp = body.width, body.mlp_width
    query, keys, _ = _heads(config, width)
    for _ in range(body.num_layers):
        tally.wrap(q_proj=(width, query), k_proj=(width, keys), v_proj=(width, keys), attn_out=(query, width))
        tally.wrap(ff_proj=(width, mlp), up_proj=(width, mlp), ff_out=(mlp, width))
        tally.add(2 * width)
    _ends(tally, body, is_tied=bool(config.get("weight_tying") or config.get("tie_word_embeddings")))
    return body


def _count_decoder(
    tally: _Tally,
    config: Config,
    *,
    has_qkv_bias: bool = False,
    has_qk_norm: bool = False,
    mixture: Callable[[Config, int], tuple[int, int] | None] = lambda config, layer: None,
    dense: int | None = None,
) -> _Body:
    """Count a body under Llama's names.

    Args:
        tally: is added to.
        config: the content of a config.json.
        has_qkv_bias: as in Qwen2.
        has_qk_norm: as in Qwen3.
        mixture: the number of a layer's experts and their width; None where the layer is dense.
        dense: width of a dense layer's feed-forward part, where it is not ``intermediate_size``.
    """
    body = _body(config)
    width = body.width
    query, keys, head = _heads(config, width)
    for layer in range(body.num_layers):
        tally.wrap(has_qkv_bias, q_proj=(width, query), k_proj=(width, keys), v_proj=(width, keys))
        tally.wrap(o_proj=(query, width))
        tally.add(2 * width, 2 * head if has_qk_norm else 0)
        experts = mixture(config, layer)
        if experts is None:
            _swiglu(tally, width, dense or config["intermediate_size"])
        else:
            tally.add(experts[0] * width, experts[0] * 3 * width * experts[1])
    _ends(tally, body, is_tied=bool(config.get("tie_word_embeddings")))
    return body


def _swiglu(tally: _Tally, width: int, inner: int) -> None:
    tally.wrap(gate_proj=(width, inner), up_proj=(width, inner), down_proj=(inner, width))


def _count_dream(tally: _Tally, config: Config) -> _Body:
    return _count_decoder(tally, config, has_qkv_bias=True)


def _count_sdar(tally: _Tally, config: Config) -> _Body:
    def mixture(config: Config, layer: int) -> tuple[int, int] | None:
        is_off_step = (layer + 1) % (config.get("decoder_sparse_step") or 1)
        if not config.get("num_experts") or layer in (config.get("mlp_only_layers") or ()) or is_off_step:
            return None
        return config["num_experts"], config["moe_intermediate_size"]

    return _count_decoder(tally, config, has_qk_norm=True, mixture=mixture)


def _count_llada_moe(tally: _Tally, config: Config) -> _Body:
    def mixture(config: Config, layer: int) -> tuple[int, int] | None:
        frequency = config.get("moe_layer_freq")
        is_dense = frequency and not frequency[layer]
        return None if is_dense else (config["num_experts"], config["expert_intermediate_size"])

    dense = config.get("dense_intermediate_size") or config["expert_intermediate_size"]
    return _count_decoder(tally, config, has_qk_norm=True, mixture=mixture, dense=dense)


def _count_llada2(tally: _Tally, config: Config) -> _Body:
    body = _body(config)
    width, num_experts, inner = body.width, config["num_experts"], config["moe_intermediate_size"]
    query, keys, head = _heads(config, width)
    for layer in range(body.num_layers):
        tally.wrap(query_key_value=(width, query + 2 * keys), dense=(query, width))
        tally.add(2 * width, 2 * head)
        if layer < (config.get("first_k_dense_replace") or 0):
            _swiglu(tally, width, config["intermediate_size"])
            continue
        tally.add(num_experts * width, num_experts, num_experts * 3 * width * inner)  # router, its bias, experts
        if config.get("num_shared_experts"):
            _swiglu(tally, width, inner * config["num_shared_experts"])
    _ends(tally, body, is_tied=bool(config.get("tie_word_embeddings")))
    return body


def _count_eye(tally: _Tally, config: Config, width: int) -> None:
    """Count a SigLIP tower, the projector and the newline, which LoRA leaves alone."""
    given = config.get("vision_config") or config.get("_tiny_vision") or {}
    if "num_hidden_layers" in given:  # counts the layer that no file holds
        given = {"num_hidden_layers_in_file": given["num_hidden_layers"] - 1, **given}
    tower = SO400M | given
    hidden, inner, patch = tower["hidden_size"], tower["intermediate_size"], tower["patch_size"]
    layers = tower["num_hidden_layers_in_file"]
    tally.add(hidden * (3 * patch**2 + 1), hidden * (tower["image_size"] // patch) ** 2)
    tally.add(layers * (4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + hidden + 4 * hidden), 2 * hidden)
    tally.add(width * (hidden + 1), width * (width + 1), width)


def _count_llada_v(tally: _Tally, config: Config) -> _Body:
    body = _count_decoder(tally, config)
    _count_eye(tally, config, body.width)
    return body


def _count_lavida(tally: _Tally, config: Config) -> _Body:
    body = _count_llama(tally, config)
    _count_eye(tally, config, body.width)
    return body


def _count_gemma(tally: _Tally, config: Config) -> _Body:
    """Count DiffusionGemma: one set of text weights, a scalar a layer for each of its two parts, and the tower."""
    text = config["text_config"]
    body = _body(text)
    width, num_experts, inner = body.width, text.get("num_experts") or 0, text.get("moe_intermediate_size") or 0
    overrides = text.get("per_layer_config") or {}
    for layer in range(body.num_layers):
        is_full = text["layer_types"][layer] == "full_attention"
        query, keys, head = _heads({**text, **(overrides.get(str(layer)) or overrides.get(layer) or {})}, width)
        tally.wrap(q_proj=(width, query), k_proj=(width, keys), o_proj=(query, width))
        if not is_full:  # full layers take their keys as values
            tally.wrap(v_proj=(width, keys))
        _swiglu(tally, width, text["intermediate_size"])
        tally.add(7 * width, 2 * head, 2)
        if num_experts:
            tally.add(width, num_experts, num_experts * width, num_experts * 3 * width * inner)
    _ends(tally, body, is_tied=True)
    tally.add(width, 3 * width * text["intermediate_size"])  # self-conditioning
    _count_gemma_tower(tally, config["vision_config"], width)
    return body


def _count_gemma_tower(tally: _Tally, vision: Config, width: int) -> None:
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    query, keys, head = _heads(vision, hidden)
    layer = 2 * hidden * (query + keys) + 2 * head + 3 * hidden * inner + 4 * hidden
    tally.add(2 * vision["position_embedding_size"] * hidden, 3 * vision["patch_size"] ** 2 * hidden)
    tally.add(vision["num_hidden_layers"] * layer, 2 * hidden if vision.get("standardize") else 0, hidden * width)


def _count_showo(tally: _Tally, config: Config) -> _Body:
    phi = config.get("phi") or PHI_1_5
    body = _body({**phi, "vocab_size": config["vocab_size"]})
    width, mlp = body.width, body.mlp_width
    head = _heads(phi, width)[2]
    for _ in range(body.num_layers):
        square = (width, width)
        tally.wrap(True, q_proj=square, k_proj=square, v_proj=square, dense=square, fc1=(width, mlp), fc2=(mlp, width))
        tally.add(2 * width, 4 * head)
    tally.add(2 * body.vocabulary * width, 2 * width, body.vocabulary)
    return body


def _count_masked_lm(tally: _Tally, config: Config) -> _Body:
    """Count BERT and ModernBERT; others are estimated as Llama bodies."""
    counts = {"bert": _count_bert, "modernbert": _count_modernbert}
    return counts.get(str(config.get("model_type")), _count_llama)(tally, config)


def _count_bert(tally: _Tally, config: Config) -> _Body:
    body = _body(config)
    width, mlp, square = body.width, body.mlp_width, (body.width, body.width)
    for _ in range(body.num_layers):
        tally.wrap(True, query=square, key=square, value=square, dense=square)
        tally.wrap(True, dense=(width, mlp))
        tally.wrap(True, dense=(mlp, width))
        tally.add(4 * width)
    tally.add((config["max_position_embeddings"] + (config.get("type_vocab_size") or 2)) * width, 2 * width)
    _head(tally, body, config, width * width + 3 * width)
    return body


def _count_modernbert(tally: _Tally, config: Config) -> _Body:
    body = _body(config)
    width, mlp = body.width, body.mlp_width
    for layer in range(body.num_layers):
        tally.wrap(Wqkv=(width, 3 * width), Wo=(width, width), Wi=(width, 2 * mlp))
        tally.wrap(Wo=(mlp, width))
        tally.add(2 * width if layer else width)  # the first has no norm before its attention
    tally.add(2 * width)
    _head(tally, body, config, width * width + width)
    return body


def _head(tally: _Tally, body: _Body, config: Config, transform: int) -> None:
    """Count an encoder's embedding and head, whose bias is its own where the weights are the embedding."""
    is_tied = config.get("tie_word_embeddings", True)
    tally.add(body.vocabulary * body.width * (1 if is_tied else 2), body.vocabulary, transform)


COUNTS: Mapping[str, Callable[[_Tally, Config], _Body]] = {
    "unigrpo.models.policies.llada:LladaPolicy": _count_llama,
    "unigrpo.models.policies.mmada:MmadaPolicy": _count_llama,
    "unigrpo.models.policies.dream:DreamPolicy": _count_dream,
    "unigrpo.models.policies.sdar:SdarPolicy": _count_sdar,
    "unigrpo.models.policies.llada_v:LladaVPolicy": _count_llada_v,
    "unigrpo.models.policies.lavida:LavidaPolicy": _count_lavida,
    "unigrpo.models.policies.llada_moe:LladaMoePolicy": _count_llada_moe,
    "unigrpo.models.policies.llada2:Llada2Policy": _count_llada2,
    "unigrpo.models.policies.diffusion_gemma:DiffusionGemmaPolicy": _count_gemma,
    "unigrpo.models.policies.showo:ShowoPolicy": _count_showo,
    "unigrpo.models.policies.masked_lm:MaskedLmPolicy": _count_masked_lm,
}
"""By the family's class (`unigrpo.models.families.FAMILIES`)."""
