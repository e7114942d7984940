"""How a picture that is no square becomes one, from the row of the data to the codes that are read or learned."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from unigrpo.cli.pictures import open_cells_of_mask
from unigrpo.data.sources import load_prompts
from unigrpo.errors import RecipeError, UserError
from unigrpo.models import load_policy
from unigrpo.models.families import abilities
from unigrpo.models.pictures.pixels import picture_to_pixels
from unigrpo.recipe.load import find_recipe, load_recipe
from unigrpo.settings.sft import SftTaskSettings
from unigrpo.settings.tasks import DataSettings, SamplingSettings
from unigrpo.sizing.arithmetic import batch_arithmetic
from unigrpo.supervised.rows import Demonstrations, caching_codes

GOLDEN = Path(__file__).parent / "golden"
SIZE = 64
FITS = ("squash", "pad", "crop")


def wide_picture(width=96, height=64):
    """Red at the left edge, green at the right one, noise between."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:, :8], pixels[:, -8:] = (255, 0, 0), (0, 255, 0)
    return Image.fromarray(pixels)


def squared(picture, fit):
    """The square of a picture of 96 x 64 pixels, by hand."""
    if fit == "crop":
        return picture.crop((16, 0, 80, 64))
    if fit == "pad":
        picture = ImageOps.expand(picture, (0, 16), "white")
    return picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def test_squash_and_pad_keep_both_edges_and_crop_loses_them():
    picture = Image.new("RGB", (480, 320), "blue")
    picture.paste("red", (0, 0, 60, 320))
    picture.paste("lime", (420, 0, 480, 320))
    red, green, blue = [1, -1, -1], [-1, 1, -1], [-1, -1, 1]
    for fit, edges in (("squash", (red, green)), ("pad", (red, green)), ("crop", (blue, blue))):
        pixels = picture_to_pixels(picture, SIZE, fit)
        assert (pixels[:, SIZE // 2, 0].tolist(), pixels[:, SIZE // 2, -1].tolist()) == edges
    assert picture_to_pixels(picture, SIZE, "pad")[:, (0, -1)].eq(1).all()  # white above and below


@pytest.fixture(scope="module")
def policy():
    return load_policy("asset:tiny_policy", "float32", image_tokenizer="asset:tiny_magvit", image_size=SIZE)


def prompts(folder, kind, **data):
    wide_picture().save(folder / "a.png")
    (folder / "data.jsonl").write_text(json.dumps({"prompt": "what?", "image": "a.png"}) + "\n")
    return load_prompts(DataSettings(jsonl=str(folder / "data.jsonl"), **data), kind, kind, "train", 0)


def codes_read(policy, prompt):
    canvas = policy.encode(prompt, SamplingSettings(completion_length=4, num_denoising_steps=4))
    (span,) = [span for span in canvas.spans if span.kind == "image_slot"]
    return canvas.token_ids[span.start : span.stop] - policy.vocabulary.image_range[0]


def codes_of(policy, fit):
    pixels = picture_to_pixels(squared(wide_picture(), fit), SIZE)
    return policy.image_tokenizer.encode(pixels[None])[0].detach().numpy()


@pytest.mark.parametrize("given", [None, *FITS])
def test_a_row_is_read_as_its_data_says_else_as_the_release(tmp_path, policy, given):
    assert policy.image_fit == abilities("mmada").image_fit == "crop"
    prompt = prompts(tmp_path, "understand", image_fit=given)[0]
    assert prompt.images[0].size == (96, 64)  # a reward sees it whole
    assert codes_read(policy, prompt).tolist() == codes_of(policy, given or "crop").tolist()
    assert codes_of(policy, "squash").tolist() != codes_of(policy, "crop").tolist()


def test_the_policys_way_is_that_of_data_that_says_nothing(tmp_path):
    policy = load_policy(
        "asset:tiny_policy", "float32", image_tokenizer="asset:tiny_magvit", image_size=SIZE, image_fit="pad"
    )
    for given, wanted in ((None, "pad"), ("squash", "squash")):
        prompt = prompts(tmp_path, "understand", image_fit=given)[0]
        assert codes_read(policy, prompt).tolist() == codes_of(policy, wanted).tolist()


@pytest.mark.parametrize("given", [None, "pad"])
def test_a_picture_to_learn_from_is_fitted_as_its_data_says(tmp_path, policy, given):
    source = prompts(tmp_path, "imagine", image_fit=given)
    count = len(codes_of(policy, "crop"))
    data = {"kind": "imagine", "data": {}, "batch_size": 1, "completion_length": count}
    rows = Demonstrations(
        caching_codes(policy), "imagine", SftTaskSettings(**data), source, seed=0, caption_dropout=0.0
    ).rows(0)
    learned = rows.clean_ids[rows.is_open] - policy.vocabulary.image_range[0]
    assert learned.tolist() == codes_of(policy, given or "crop").tolist()


def test_a_question_to_learn_from_is_fitted_as_its_data_says(tmp_path, policy):
    source = prompts(tmp_path, "understand", image_fit="squash", columns={"completion": "prompt"})
    data = {"kind": "understand", "data": {}, "batch_size": 1, "completion_length": 16}
    demonstrations = Demonstrations(
        caching_codes(policy), "understand", SftTaskSettings(**data), source, seed=0, caption_dropout=0.0
    )
    ids = (demonstrations.rows(0).clean_ids[0] - policy.vocabulary.image_range[0]).tolist()
    wanted = codes_of(policy, "squash").tolist()
    assert any(ids[place : place + len(wanted)] == wanted for place in range(len(ids)))


def test_a_family_that_makes_no_squares_takes_no_way_to_make_them():
    with pytest.raises(UserError, match=r"image_fit 'pad': .*llada_tiny makes no squares of pictures; leave it out"):
        load_policy(GOLDEN / "llada_tiny", image_fit="pad")
    for key in ("policy.image_fit", "tasks.understand.data.image_fit"):
        with pytest.raises(RecipeError, match=rf"{key}: pad, and GSAI-ML/LLaDA-V makes no squares"):
            load_recipe("quickstart", ["policy.path=GSAI-ML/LLaDA-V", f"{key}=pad"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], "squares of 64 pixels by crop, as in the release"),
        (["policy.image_fit=pad"], "by pad, by policy.image_fit"),
        (["policy.image_fit=pad", "tasks.understand.data.image_fit=squash"], "by squash, by data.image_fit"),
    ],
)
def test_check_says_how_pictures_become_squares(changes, said):
    rows = batch_arithmetic(load_recipe("quickstart", changes))["tasks"]
    assert [said in row.explanation for row in rows] == [row.name == "understand" for row in rows]


def test_the_papers_recipe_squashes_its_questions_as_the_release_does():
    recipe = yaml.safe_load(find_recipe("mmada_unified").read_text())
    assert recipe["tasks"]["understand"]["data"]["image_fit"] == "squash"


def test_a_mask_is_fitted_as_its_picture():
    mask = Image.new("L", (12, 4))
    mask.putpixel((0, 0), 255)  # top left
    assert np.argwhere(open_cells_of_mask(mask, 4, "squash")).tolist() == [[0, 0]]
    assert np.argwhere(open_cells_of_mask(mask, 6, "pad")).tolist() == [[2, 0]]  # below a bar of a third
    with pytest.raises(UserError, match="nothing in it is white"):
        open_cells_of_mask(mask, 4, "crop")  # cut off
