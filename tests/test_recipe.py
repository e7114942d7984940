import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from unigrpo.data.sources import check_jsonl
from unigrpo.errors import RecipeError
from unigrpo.recipe.load import dump_recipe, is_supervised, load_recipe, load_sft_recipe

Write = Callable[[dict[str, Any]], Path]


def test_good_recipe_loads_with_absolute_paths(recipe_values: dict[str, Any], write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(recipe_values))
    assert Path(recipe.policy.path).is_absolute()
    assert recipe.rewards["length"].use.endswith("my_rewards.py:length")
    assert Path(recipe.tasks["reason"].data.jsonl or "").is_absolute()


def test_a_dotted_name_of_code_passes_the_check(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    (tmp_path / "nested.py").write_text("class Rewards:\n    @staticmethod\n    def length(completions, scale): ...\n")
    recipe = load_recipe(write_recipe(recipe_values), ["rewards.length.use=nested.py:Rewards.length"])
    assert recipe.rewards["length"].use == f"{tmp_path}/nested.py:Rewards.length"


def test_code_that_arguments_name_is_anchored_and_located(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    reward = recipe_values["rewards"]["length"]
    reward.update(use="unigrpo.rewards.adapters:Trl", arguments={"function": "my_rewards.py:length"})
    recipe = load_recipe(write_recipe(recipe_values))
    assert recipe.rewards["length"].arguments["function"] == f"{tmp_path}/my_rewards.py:length"
    reward.update(use="unigrpo.rewards.ocr:Ocr", arguments={"recognizer": "my_rewards.py:lenght"})
    with pytest.raises(RecipeError, match=r"rewards.length.arguments.recognizer: .*did you mean 'length'\?"):
        load_recipe(write_recipe(recipe_values))


def test_dumped_recipe_loads_as_the_same_recipe_from_another_folder(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(recipe_values), ["learner.lr=3e-6"])
    other = tmp_path / "elsewhere"
    other.mkdir()
    dump_recipe(recipe, other / "recipe.yaml")
    assert load_recipe(other / "recipe.yaml") == recipe
    assert [path.name for path in other.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("override", "path", "wanted"),
    [
        ("learner.lr=3e-6", "learner.lr", 3e-6),
        ("num_steps=8", "num_steps", 8),
        ("evaluate.enabled=false", "evaluate.enabled", False),
        ("rewards.length.arguments={scale: 1e-3}", "rewards.length.arguments", {"scale": 1e-3}),
        ("description=2020-01-01", "description", "2020-01-01"),
        ("lora.targets=[q_proj, v_proj]", "lora.targets", ["q_proj", "v_proj"]),
        ("tasks.reason.sampling.block_length=null", "tasks.reason.sampling.block_length", None),
    ],
)
def test_overrides_carry_the_types_of_yaml(
    recipe_values: dict[str, Any], write_recipe: Write, override: str, path: str, wanted: object
) -> None:
    value: Any = load_recipe(write_recipe(recipe_values), [override]).model_dump()
    for key in path.split("."):
        value = value[key]
    assert value == wanted
    assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["kl.coef=0"], {"kl": {"use": "k1", "coef": 0.0}}),
        (["kl=k2", "kl.coef=0.5"], {"kl": {"use": "k2", "coef": 0.5}}),
        (["kl={use: k2, coef: 0.5}", "kl=k3"], {"kl": {"use": "k3", "coef": 0.02}}),
        (["tasks.reason.sampling.schedule.shift=2"], {"schedule": {"use": "shift", "shift": 2}}),
    ],
)
def test_an_override_sets_a_parameter_beside_a_bare_name(
    recipe_values: dict[str, Any], write_recipe: Write, overrides: list[str], wanted: dict[str, dict[str, Any]]
) -> None:
    recipe_values["kl"] = "k1"
    recipe_values["tasks"]["reason"]["sampling"]["schedule"] = "shift"
    recipe = load_recipe(write_recipe(recipe_values), overrides)
    found = {"kl": recipe.kl.model_dump(), "schedule": recipe.tasks["reason"].sampling.schedule.model_dump()}
    for name, parameters in wanted.items():
        assert parameters.items() <= found[name].items()


BAD_OVERRIDES = [
    ("learner.lrr=1", "learner.lrr: unknown key; did you mean `lr`?"),
    ("learner.zzz=1", "known here: lr, num_inner_updates"),
    ("num_steps=many", "num_steps: given 'many', wanted a valid integer"),
    ("num_steps=0", "num_steps: given 0, wanted greater than or equal to 1"),
    ("learner.lr=-1", "learner.lr: given -1, wanted greater than 0"),
    ("policy.dtype=float16", "policy.dtype: given 'float16'; wanted one of float32, bfloat16"),
    (
        "tasks.gsm8k={}",
        "tasks.gsm8k.kind: missing; wanted one of reason (text to text), understand (pictures and text to text) or ",
    ),
    ("tasks.gsm8k.kind=imagin", "tasks.gsm8k.kind: given 'imagin'; wanted one of reason, understand, imagine; did you"),
    ("tasks.reason.sampling.completion_length=null", "tasks.reason.sampling.completion_length: given None"),
    ("policy.device=gpu", "policy.device: given 'gpu'; wanted cpu, cuda or cuda:N"),
    ("policy.path=./nowhere", "policy.path: there is no folder ./nowhere"),
    ("policy.path=asset:nothing", "policy.path: no asset 'nothing' ships with the package"),
    ("policy.image_tokenizer=null", "the task imagine needs one"),
    ("policy.image_tokenizer=bare", "bare is not an image tokenizer: it holds no *.safetensors"),
    ("policy.adapter=./gone", "policy.adapter: there is no folder ./gone"),
    ("policy.revision=main", "which has no revisions"),
    ("group_size=9", "8 rows do not hold one whole group of group_size 9; wanted at least 9"),
    ("rollouts.num_gpus=1", "there are no actors to give GPUs to"),
    ("tasks.reason.sampling.block_length=7", "completion_length 16 is not a multiple of block_length 7"),
    ("tasks.reason.sampling.num_denoising_steps=5", "num_denoising_steps 5 does not divide over 2 blocks"),
    ("tasks.reason.sampling.num_denoising_steps=32", "32 is more than the 16 tokens there are to fill"),
    ("tasks.reason.sampling.schedule=cosine", "cosine is a schedule of pictures; wanted linear for reason"),
    ("tasks.reason.sampling.temperature=0", "0 makes all completions of a group equal"),
    ("tasks.imagine.sampling.completion_length=15", "15 codes make no square picture; wanted 9 or 16"),
    ("tasks.imagine.sampling.block_length=4", "a picture is one block"),
    ("tasks.reason.data.jsonl=gone.jsonl", "tasks.reason.data.jsonl: there is no file gone.jsonl"),
    ("tasks.reason.data.jsonl=null", "neither use nor jsonl"),
    ("tasks.reason.data.use='my_rewards.py:length'", "both use and jsonl"),
    ("tasks.reason.data.eval_jsonl=null", "name held-out prompts, or set evaluate.enabled to false"),
    ("tasks.reason.data.arguments={n: 1}", "there is no `use` that would take them"),
    (
        "tasks.reason.data.columns={answer: solution}",
        "no column 'solution' for 'answer'; its columns are 'prompt', 'answer'",
    ),
    ("tasks.reason.data.columns={text: prompt}", "columns.text: not a name of ours; wanted one of prompt, answer"),
    ("tasks.reason.data.template=Think.", "has no {prompt}"),
    ("tasks={}", "tasks: none"),
    ("rewards={}", "rewards: none; wanted at least one"),
    ("rewards.length.weight=0", "none with a weight applies to the task reason"),
    ("rewards.length.tasks=[]", "rewards.length.tasks: empty"),
    ("rewards.length.weight=.nan", "rewards.length.weight: given nan, wanted a finite number"),
    ("rewards.length.gate=[fromat]", "rewards.length.gate: there is no reward 'fromat'"),
    ("rewards.length.on_error=value", "go together; one was given without the other"),
    ("rewards.length.use=length", 'names no code; wanted "module:Name" or "path/to/file.py:name"'),
    ("rewards.length.use=gone.py:length", "there is no file gone.py"),
    ("rewards.length.use=my_rewards.py:lenght", "did you mean 'length'?"),
    ("rewards.length.use=no_such_package.rewards:f", "there is no module no_such_package.rewards"),
    ("rewards.length.arguments={scael: 1}", "takes no such argument; did you mean 'scale'?; it takes: scale"),
    ("estimator.use=unigrpo.settings.base:Nothing", "unigrpo.settings.base defines no 'Nothing'"),
    ("kl.koef=1", "kl.koef: k3 takes no such argument; did you mean 'coef'?; it takes: coef, to"),
    ("tracking.use=[{project: x}]", "tracking.use.0.use: missing; wanted a value (text)"),
    ("learner.lr.rise=1", "learner.lr is a number, which has no keys"),
    ("estimator=unigrop", "estimator: there is no 'unigrop'; did you mean 'unigrpo'?; known: unigrpo"),
    (
        "estimator={use: unigrpo, spasing: even}",
        "estimator.spasing: unigrpo takes no such argument; did you mean 'spacing'?; it takes: ",
    ),
    ("evaluate.accuracy={reason: correctness}", "there is no reward 'correctness'; the recipe has length"),
    ("num_steps", "override 'num_steps': wanted key.path=value"),
    ("a..b=1", "wanted key.path=value"),
    ("name.first=1", "name is text, which has no keys"),
    ("num_steps={", "override 'num_steps={': line 1"),
    ("num_steps=" + "9" * 5_000, ": a number of too many digits, or of none; write it as text, in quotes"),
    ("learner={lr: -" + "1" * 4_301 + "}", ": a number of too many digits, or of none; write it as text, in quotes"),
    ("seed=0b_", "override 'seed=0b_': a number of too many digits, or of none"),
    ("name=!!python/object:os.system x", "could not determine a constructor"),
]


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES)
def test_bad_value_is_refused_with_its_key_and_the_way_out(
    recipe_values: dict[str, Any], write_recipe: Write, override: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(recipe_values), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "way_out", "message"),
    [
        (
            ["policy.dtype=bfloat16", "lora.enabled=false"],
            ["lora.enabled=true", "policy.dtype=float32"],
            "AdamW's small steps round to nothing in bfloat16; set policy.dtype=float32 or lora.enabled=true",
        ),
        (
            ["policy.device=cuda", "rollouts.num_actors=2"],
            ["rollouts.num_gpus=0.5", "rollouts.num_actors=0", "policy.device=cpu"],
            "rollouts.num_gpus: 0 hides every GPU from the actors",
        ),
    ],
)
def test_settings_that_contradict_are_refused_and_each_way_out_is_one(
    recipe_values: dict[str, Any], write_recipe: Write, overrides: list[str], way_out: list[str], message: str
) -> None:
    path = write_recipe(recipe_values)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert message in str(caught.value)
    for override in way_out:
        load_recipe(path, [*overrides, override])


def test_every_problem_is_named_at_once(recipe_values: dict[str, Any], write_recipe: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(recipe_values), ["learner.lrr=1", "num_steps=0", "policy.dtype=int8"])
    assert len(caught.value.problems) == 3
    assert "recipe.yaml: 3 problems" in str(caught.value)


def test_missing_section_is_named(recipe_values: dict[str, Any], write_recipe: Write) -> None:
    del recipe_values["learner"]
    with pytest.raises(RecipeError, match="learner: missing; wanted a section"):
        load_recipe(write_recipe(recipe_values))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2, column 1: the key 'name' stands twice"),
        ("- a\n", "holds a list; wanted a mapping"),
        ("", "holds nothing; wanted a mapping"),
        ("name: [", "line 1"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("x: " + "y" * 1_000_001, "a recipe has at most 1,000,000"),
    ],
)
def test_text_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_alias_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError, match="once its aliases are written out"):
        load_recipe(path)


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(path)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(RecipeError, match="no such file, and no packaged recipe of that name"):
        load_recipe("no-such-recipe")


def test_overrides_leave_other_values_alone(recipe_values: dict[str, Any], write_recipe: Write) -> None:
    before = copy.deepcopy(recipe_values)
    plain = load_recipe(write_recipe(recipe_values)).model_dump()
    changed = load_recipe(write_recipe(recipe_values), ["seed=7"]).model_dump()
    assert {key for key in plain if plain[key] != changed[key]} == {"seed"}
    assert recipe_values == before


def test_supervised_recipe_is_checked_too(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    values = {
        "name": "sft",
        "num_steps": 5,
        "lr": 1e-3,
        "policy": recipe_values["policy"],
        "tasks": {"imagine": {"data": {"jsonl": "prompts.jsonl"}, "batch_size": 2, "completion_length": 16}},
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load_sft_recipe(path).tasks["imagine"].completion_length == 16
    with pytest.raises(RecipeError, match="17 codes make no square picture"):
        load_sft_recipe(path, ["tasks.imagine.completion_length=17"])


@pytest.mark.parametrize("name", ["llada_gsm8k", "mmada_unified", "sdar_gsm8k"])
def test_recipe_of_released_checkpoints_is_sound_where_its_data_lies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = '{"question": "?", "answer": "2", "image": "0.png", "caption": "a cat"}\n'
    for folder in ("gsm8k", "visual", "captions"):
        for split in ("train", "test"):
            path = tmp_path / "data" / folder / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(row)
            Image.new("RGB", (8, 8)).save(path.parent / "0.png")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    assert recipe.rewards["correctness"].weight == 2.0
    assert recipe.rewards["format"].weight == 0.5


def test_recipe_without_its_data_names_each_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"there is no file data/gsm8k/train\.jsonl"):
        load_recipe("llada_gsm8k")


def test_packaged_quickstart_is_sound() -> None:
    assert set(load_recipe("quickstart").tasks) == {"reason", "understand", "imagine"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"prompts\.jsonl:3: not JSON"),
        (b'{"prompt": "\xff"}', r"prompts\.jsonl:3: not JSON.*utf-8"),
        (b'{"prompt": null, "image": "picture.png"}', r"prompts\.jsonl:3: prompt None; it is text"),
        (b'{"prompt": 3, "image": "picture.png"}', r"prompts\.jsonl:3: prompt 3; it is text"),
        (b'{"prompt": "x", "image": "gone.png"}', r"prompts\.jsonl:3: there is no picture 'gone\.png' in "),
    ],
)
def test_later_lines_of_a_file_are_checked_too(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path, line: bytes, message: str
) -> None:
    good = b'{"prompt": "1+1", "answer": "2", "image": "picture.png"}\n'
    (tmp_path / "prompts.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(recipe_values))


def test_lines_beyond_the_budget_are_left_to_training(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n' * 3 + "{")
    check_jsonl(path, "reason", {}, max_lines=3)
    with pytest.raises(ValueError, match=r"prompts\.jsonl:4: not JSON"):
        check_jsonl(path, "reason", {}, max_lines=4)


def test_supervised_recipe_is_told_from_a_training_recipe(
    recipe_values: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    assert not is_supervised(write_recipe(recipe_values))
    path = tmp_path / "sft.yaml"
    path.write_text("name: sft\nlr: 1e-3\n")
    assert is_supervised(path)
