"""The image-reward package as a reward of its own environment; the golden's smaller network needs three patches."""

from importlib import import_module
from pathlib import Path


class PackagedImageReward:
    """Scores by the package's own ``score``; nothing of ours computes here."""

    range = (-100.0, 100.0)

    def __init__(self, checkpoint: str, vocabulary: str, med_config: str, vision: dict, text_width: int = 768) -> None:
        import torch
        from ImageReward.models.BLIP import blip_pretrain
        from ImageReward.models.BLIP.vit import VisionTransformer
        from transformers import BertTokenizer

        def tokenizer() -> BertTokenizer:
            made = BertTokenizer(str(Path(vocabulary) / "vocab.txt"))
            made.add_special_tokens({"bos_token": "[DEC]"})
            made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
            return made

        package = import_module("ImageReward.ImageReward")  # The package's name for it is its class.
        mlp = package.MLP
        blip_pretrain.init_tokenizer = tokenizer  # Else from the hub.
        blip_pretrain.create_vit = lambda *_: (VisionTransformer(img_size=224, **vision), vision["embed_dim"])
        package.MLP = lambda _: mlp(text_width)
        self._model = package.ImageReward(med_config, device="cpu")
        self._model.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)
        self._model.eval()

    def __call__(self, *, prompts: list, completions: list, **columns: object) -> list:
        import torch

        with torch.no_grad():
            return [self._model.score(prompt, image) for prompt, image in zip(prompts, completions, strict=True)]
