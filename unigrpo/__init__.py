"""unigrpo: reinforcement-learning post-training of masked-diffusion language models, text and multimodal."""

from unigrpo import torchvision_hook

__version__ = "0.1.0"

torchvision_hook.install()
