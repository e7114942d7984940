"""Detectors on tiny random checkpoints in the published layout, and colours by the tiny CLIP."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from unigrpo.rewards.compositional import Compositional
from unigrpo.rewards.vision.color_clip import ClipColors, crop_of
from unigrpo.rewards.vision.detection import Detection
from unigrpo.rewards.vision.detector_mask2former import NAMES, Mask2FormerDetector
from unigrpo.rewards.vision.detector_zero_shot import ZeroShotDetector
from unigrpo.rewards.vision.geneval import COLORS
from unigrpo.testing.conformance import check_reward

LETTERS = [chr(97 + index) for index in range(26)]
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}


@pytest.fixture(scope="module", autouse=True)
def _fixed_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("mask2former")
    names = dict(enumerate(("person", "motorbike", "remote")))
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, size_divisor=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    folder = tmp_path_factory.mktemp("owlv2")
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=24)
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 24, "bos_token_id": 52, "eos_token_id": 53}
    config = Owlv2Config(
        text_config=layers | text | {"pad_token_id": 0},
        vision_config=layers | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("grounding_dino")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    layers = {"encoder_layers": 1, "encoder_ffn_dim": 16, "encoder_attention_heads": 2}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**SWIN, out_indices=[2, 3, 4]),
        text_config=BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        num_queries=10,
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        **layers,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def pictures(*sizes):
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in sizes]


MIXED = [(80, 48), (40, 60), (80, 48), (64, 64), (40, 60)]


def assert_same(first, second):
    assert [one.label for one in first] == [one.label for one in second]
    for one, other in zip(first, second, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.box == pytest.approx(other.box, abs=1e-3)


def test_mask2former_equals_its_definition_pixel_by_pixel(mask2former):
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    (picture,) = pictures((80, 48))
    found = Mask2FormerDetector(str(mask2former), min_score=0)([picture], [[]])[0]
    model = Mask2FormerForUniversalSegmentation.from_pretrained(mask2former).eval()
    inputs = AutoImageProcessor.from_pretrained(mask2former)(images=[picture], return_tensors="pt")
    assert bool(inputs["pixel_mask"].all())
    with torch.no_grad():
        output = model(**inputs)
    wanted = []
    sizes = (tuple(inputs["pixel_values"].shape[-2:]), (48, 80))
    for query in range(6):
        mask = output.masks_queries_logits[query // 6, query][None, None]
        for size in sizes:
            mask = torch.nn.functional.interpolate(mask, size, mode="bilinear", align_corners=False)
        inside = [(x, y, float(mask[0, 0, y, x])) for y in range(48) for x in range(80) if mask[0, 0, y, x] > 0]
        sure = np.mean([1 / (1 + np.exp(-value)) for *_, value in inside])
        xs, ys = [x for x, _, _ in inside], [y for _, y, _ in inside]
        exps = np.exp(output.class_queries_logits[0, query].double().numpy())
        for index, name in enumerate(("person", "motorcycle", "tv remote")):
            wanted.append((exps[index] / exps.sum() * sure, name, (min(xs), min(ys), max(xs) + 1, max(ys) + 1)))
    assert len(found) == len(wanted) == 18
    for one, (score, name, box) in zip(
        sorted(found, key=lambda one: -one.score), sorted(wanted, reverse=True), strict=True
    ):
        assert (one.label, one.box) == (name, box)
        assert one.score == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("kind", ["mask2former", "owl", "dino"])
def test_batch_equals_batches_of_one_whatever_the_sizes(kind, request):
    folder = str(request.getfixturevalue(kind))
    detector = (Mask2FormerDetector if kind == "mask2former" else ZeroShotDetector)(folder, min_score=0)
    shown, asked = pictures(*MIXED), [["person"], ["tv remote"], ["person"], ["person"], ["tv remote", "person"]]
    together = detector(shown, asked)
    for picture, labels, found in zip(shown, asked, together, strict=True):
        assert found
        assert_same(detector([picture], [labels])[0], found)
        if kind != "mask2former":
            assert {one.label for one in found} <= set(labels)
        assert all(0 <= one.box[axis] <= one.box[axis + 2] <= picture.size[axis] for one in found for axis in (0, 1))


def test_owl_boxes_equal_the_librarys_own(owl):
    from transformers import AutoProcessor, Owlv2ForObjectDetection

    names, shown = ["dog", "teddy bear"], pictures((80, 48), (80, 48))
    ours = ZeroShotDetector(str(owl), min_score=0, phrase="{}")(shown, [names] * 2)
    processor = AutoProcessor.from_pretrained(owl)
    inputs = processor(text=[names] * 2, images=shown, return_tensors="pt")
    with torch.no_grad():
        output = Owlv2ForObjectDetection.from_pretrained(owl).eval()(**inputs)
    theirs = processor.post_process_grounded_object_detection(
        output, threshold=0.0, target_sizes=[(48, 80)] * 2, text_labels=[names] * 2
    )
    for found, wanted in zip(ours, theirs, strict=True):
        assert [one.label for one in found] == wanted["text_labels"]
        assert [one.score for one in found] == pytest.approx(wanted["scores"].tolist(), abs=1e-6)
        cut = wanted["boxes"].clamp(min=0).minimum(torch.tensor([80.0, 48.0, 80.0, 48.0]))
        assert np.allclose([one.box for one in found], cut.numpy(), atol=1e-3)


def test_dino_scores_a_name_by_its_own_tokens(dino):
    from transformers import AutoProcessor, GroundingDinoForObjectDetection

    (picture,) = pictures((80, 48))
    found = ZeroShotDetector(str(dino), min_score=0)([picture], [["dog", "teddy bear"]])[0]
    inputs = AutoProcessor.from_pretrained(dino)(text=["dog. teddy bear."], images=[picture], return_tensors="pt")
    with torch.no_grad():
        output = GroundingDinoForObjectDetection.from_pretrained(dino).eval()(**inputs)
    tokens = output.logits[0].sigmoid().double().numpy()  # [CLS] d o g . t e d d y b e a r . [SEP]
    for row, one in enumerate(found):
        dog, bear = tokens[row, 1:4].mean(), tokens[row, 5:14].mean()
        assert one.label == ("dog" if dog >= bear else "teddy bear")
        assert one.score == pytest.approx(max(dog, bear), abs=1e-5)
        x, y, wide, high = (output.pred_boxes[0, row] * torch.tensor([80.0, 48.0, 80.0, 48.0])).tolist()
        assert one.box == pytest.approx(
            (max(0, x - wide / 2), max(0, y - high / 2), min(80, x + wide / 2), min(48, y + high / 2)), abs=1e-3
        )
    assert {one.label for one in found} == {"dog", "teddy bear"}


def test_names_that_a_model_cannot_find_are_refused(mask2former, dino):
    shown = pictures((64, 64))
    with pytest.raises(ValueError, match=r"no class 'circle'.*person"):
        Mask2FormerDetector(str(mask2former))(shown, [["circle"]])
    with pytest.raises(ValueError, match=r"reads 2 names .* 1 were asked"):
        ZeroShotDetector(str(dino))(shown, [["st. bernard"]])


def test_folders_without_weights_and_strange_models_are_refused(tmp_path, mask2former):
    with pytest.raises(FileNotFoundError, match=r"no config\.json and no model\.safetensors"):
        Mask2FormerDetector(str(tmp_path))
    with pytest.raises(ValueError, match="no place for the name"):
        ZeroShotDetector(str(mask2former), phrase="a dog")


def test_coco_names_become_those_of_the_benchmark(test_data):
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    ours = {NAMES.get(name, name) for name in coco if name not in ("__background__", "N/A")}
    lines = (test_data / "geneval/evaluation_metadata.jsonl").read_text().splitlines()
    assert ours == {clause["class"] for line in lines for clause in json.loads(line)["include"]}


def test_crop_is_the_box_on_gray_outside_of_the_mask():
    picture = Image.new("RGB", (10, 8), "red")
    mask = np.zeros((8, 10), dtype=bool)
    mask[2:4, 3:6] = True
    crop = crop_of(picture, Detection(label="car", score=1, box=(2, 1, 7, 5), mask=mask))
    assert crop.size == (5, 4)
    assert crop.getpixel((0, 0)) == (153, 153, 153) and crop.getpixel((1, 1)) == (255, 0, 0)
    assert np.count_nonzero(np.asarray(crop)[..., 0] == 255) == 6
    assert crop_of(picture, Detection(label="car", score=1, box=(9.9, 7.9, 10, 8))).size == (1, 1)
    with pytest.raises(ValueError, match=r"a mask of \(2, 2\)"):
        crop_of(picture, Detection(label="car", score=1, box=(0, 0, 2, 2), mask=mask[:2, :2]))


def test_color_is_the_nearest_mean_of_three_sentences():
    from unigrpo.rewards.vision.open_clip_towers import open_clip_body

    body = open_clip_body("asset:tiny_clip", None, "cpu")
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(4)]
    found = [
        (picture, Detection(label=name, score=1, box=(0, 0, 16, 16)))
        for picture, name in zip(shown, ("car", "dog", "car", "cup"), strict=True)
    ]
    named = ClipColors("asset:tiny_clip", None)(found)
    for (picture, one), name in zip(found, named, strict=True):
        image = body.encode_pictures([picture])[0]
        best = {}
        for color in COLORS:
            said = (f"a {color} {one.label}", f"a {color}-colored {one.label}", f"a {color} object")
            mean = sum(body.encode_texts([text.replace("a ", "a photo of a ", 1)])[0] for text in said) / 3
            best[color] = float(image @ mean / np.linalg.norm(mean))
        assert name == max(best, key=best.__getitem__)


def test_whole_reward_runs_on_a_model_and_clip_and_keeps_the_contract(mask2former):
    reward = Compositional(
        mode="soft",
        detector_arguments={"model": str(mask2former), "min_score": 0.0},
        color_arguments={"model": "asset:tiny_clip", "pretrained": None},
        threshold=0.0,
        counting_threshold=0.1,
    )
    assert reward.fingerprint == hashlib.sha256((mask2former / "model.safetensors").read_bytes()).hexdigest()
    shown = pictures(*MIXED)
    ImageDraw.Draw(shown[0]).rectangle((0, 0, 40, 40), fill="red")
    clause = {"class": "person", "count": 2, "color": "red"}
    values = check_reward(
        reward, prompts=["-"] * 5, completions=shown, include=[[clause]] * 5, exclude=[None] * 5, tag=["colors"] * 5
    )
    assert all(value in (0.5, 0.75, 1.0) for value in values)
