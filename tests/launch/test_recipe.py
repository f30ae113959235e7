"""Recipes: what they may hold, what they turn into, and what is refused."""

from pathlib import Path

import pytest
import yaml

from launch.errors import InputError
from launch.recipe import PROJECT, read_recipe

SCRIPTS = ("data_prep/clean.py", "pretrain/mlm.py", "finetune/ner.py")
BUNDLED = sorted((PROJECT / "launch/recipes").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    """Write a recipe of these stages, beside empty stage files."""
    for script in SCRIPTS:
        (tmp_path / "own" / script).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / script).write_text("")

    def write_recipe(stages: list[dict], **more) -> Path:
        stages = [{"run": f"own/{SCRIPTS[0]}"} | stage for stage in stages]
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"name": "try", "stages": stages} | more, sort_keys=False))
        return path

    return write_recipe


def settings(recipe, output="out"):
    return {stage.name: stage.settings_in(Path(output)) for stage in recipe.stages}


def test_placeholders_are_filled(write):
    path = write(
        [
            {
                "name": "corpus",
                "settings": {"input": "{data_root}/tweets", "again": ["{data_root}", {"deep": "{output}"}]},
            },
            {
                "name": "mlm",
                "settings": {"encoder": "{encoder}", "data": "{stages.corpus}", "note": "{{x}}", "seed": 3},
            },
        ],
        encoder="owner/model",
        data_root="{project}/data_prep",
    )
    assert settings(read_recipe(path)) == {
        "corpus": {"input": f"{PROJECT}/data_prep/tweets", "again": [f"{PROJECT}/data_prep", {"deep": "out"}]},
        "mlm": {"encoder": "owner/model", "data": "out/corpus", "note": "{x}", "seed": 3},
    }
    given = settings(read_recipe(path, data_root="my {data}", encoder="my/encoder"))
    assert given["corpus"]["input"] == "my {data}/tweets" and given["mlm"]["encoder"] == "my/encoder"


def test_the_encoder_may_be_made_by_a_stage(write):
    path = write(
        [{"name": "new", "settings": {}}, {"name": "mlm", "settings": {"encoder": "{encoder}"}}],
        encoder="{stages.new}",
    )
    recipe = read_recipe(path)
    assert recipe.stages[1].reads == ("new",) and settings(recipe)["mlm"] == {"encoder": "out/new"}
    assert read_recipe(path, encoder="mine").stages[1].reads == ()


def test_an_encoder_that_no_stage_reads_is_refused(write):
    path = write([{"name": "ner", "settings": {"encoder": "owner/model", "data": "tweets"}}])
    with pytest.raises(InputError, match="no stage reads {encoder}, so that --encoder mine .* --set ner.encoder=mine"):
        read_recipe(path, encoder="mine")
    path = write([{"name": "corpus", "settings": {"input": "tweets"}}])
    with pytest.raises(InputError, match="--encoder mine would do nothing.$"):
        read_recipe(path, encoder="mine")


def test_for_each_makes_every_combination(write):
    path = write(
        [
            {
                "name": "ner",
                "for_each": {"head": ["softmax", "crf"], "rate": [0.1], "seed": [1, 2], "fast": [True]},
                "settings": {"head": "{head}", "data": "x/{seed}/{fast}", "optimizer": {"learning_rate": "{rate}"}},
            },
            {
                "name": "predict",
                "for_each": {"seed": [1, 2]},
                "settings": {"model": "{stages.ner-crf-0.1-{seed}-true}"},
            },
        ]
    )
    recipe = read_recipe(path)
    assert [stage.name for stage in recipe.stages] == [
        "ner-softmax-0.1-1-true", "ner-softmax-0.1-2-true", "ner-crf-0.1-1-true", "ner-crf-0.1-2-true",
        "predict-1", "predict-2",
    ]  # fmt: skip
    assert settings(recipe)["ner-crf-0.1-2-true"] == {
        "head": "crf", "data": "x/2/true", "optimizer": {"learning_rate": 0.1},
    }  # fmt: skip
    assert recipe.stages[-1].reads == ("ner-crf-0.1-2-true",)
    assert settings(recipe)["predict-2"] == {"model": "out/ner-crf-0.1-2-true"}


def test_for_each_names_without_a_placeholder_are_settings(write):
    recipe = read_recipe(
        write([{"name": "ner", "for_each": {"head": ["crf"], "seed": [1]}, "settings": {"data": "x"}}])
    )
    assert settings(recipe) == {"ner-crf-1": {"data": "x", "head": "crf", "seed": 1}}


def test_all_stands_for_every_stage_that_for_each_made(write):
    path = write(
        [
            {"name": "data"},
            {"name": "ner", "for_each": {"head": ["softmax", "crf"], "seed": [1, 2]}, "settings": {"data": "x"}},
            {
                "name": "compare",
                "settings": {"runs": ["{all.ner}", "{stages.data}", "{{all.ner}}"], "deep": {"more": ["{all.data}"]}},
            },
        ]
    )
    recipe = read_recipe(path)
    made = ["ner-softmax-1", "ner-softmax-2", "ner-crf-1", "ner-crf-2"]
    assert settings(recipe)["compare"] == {
        "runs": [*(f"out/{name}" for name in made), "out/data", "{all.ner}"], "deep": {"more": ["out/data"]},
    }  # fmt: skip
    assert recipe.stages[-1].reads == (*made, "data")
    fewer = read_recipe(path, overrides=["ner.seed=[7]", "ner.head=crf"])
    assert settings(fewer)["compare"]["runs"] == ["out/ner-crf-7", "out/data", "{all.ner}"]
    given = read_recipe(path, overrides=['compare.runs=["{all.ner}"]', "compare.deep=null", "ner.seed=[1]"])
    assert given.stages[-1].reads == ("ner-softmax-1", "ner-crf-1")
    again = path.with_name("again.yaml")
    again.write_text(recipe.to_yaml())
    assert settings(read_recipe(again)) == settings(recipe)


def test_all_within_for_each(write):
    path = write(
        [
            {"name": "ner-a", "for_each": {"seed": [1, 2]}},
            {"name": "ner-b", "for_each": {"seed": [3]}},
            {"name": "compare", "for_each": {"of": ["a", "b"]}, "settings": {"runs": ["{all.ner-{of}}"]}},
        ]
    )
    assert settings(read_recipe(path))["compare-a"] == {"runs": ["out/ner-a-1", "out/ner-a-2"]}


@pytest.mark.parametrize(
    "value, told",
    [
        (["{all.nre}"], "Did you mean 'ner'"),
        (["{all.ner-1}"], "Did you mean 'ner'"),
        ("{all.ner}", "item of a list"),
        (["{all.ner}/scores.json"], "item of a list"),
        (["{all.compare}"], "in a circle"),
        (["{all.later}"], "Move later up"),
    ],
)
def test_wrong_uses_of_all_are_refused(write, value, told):
    stages = [
        {"name": "ner", "for_each": {"seed": [1, 2]}},
        {"name": "compare", "settings": {"runs": value}},
        {"name": "later"},
    ]
    with pytest.raises(InputError) as refused:
        read_recipe(write(stages))
    assert told in str(refused.value) and "compare" in str(refused.value)


def test_overrides(write):
    path = write(
        [
            {"name": "mlm", "settings": {"schedule": {"epochs": 3, "shape": "linear"}}},
            {"name": "ner", "for_each": {"head": ["softmax", "crf"], "seed": [1, 2, 3]}, "settings": {"rate": 1}},
        ]
    )
    overrides = [
        "mlm.schedule.epochs=null", "mlm.schedule.budget=30m", "mlm.note=a=b", "ner.seed=[7]", "ner.rate=2",
        "ner-crf-7.rate=3e-4", "ner-crf-7.loss.weight=0.5",
    ]  # fmt: skip
    assert settings(read_recipe(path, overrides=overrides)) == {
        "mlm": {"schedule": {"epochs": None, "shape": "linear", "budget": "30m"}, "note": "a=b"},
        "ner-softmax-7": {"rate": 2, "head": "softmax", "seed": 7},
        "ner-crf-7": {"rate": "3e-4", "head": "crf", "seed": 7, "loss": {"weight": 0.5}},
    }
    assert [stage.name for stage in read_recipe(path, overrides=["ner.head=crf"]).stages][1:] == [
        "ner-crf-1", "ner-crf-2", "ner-crf-3",
    ]  # fmt: skip


def test_an_override_of_a_stage_that_another_takes_out_is_refused(write):
    path = write([{"name": "ner", "for_each": {"seed": [1, 2]}}])
    with pytest.raises(InputError, match="no stage 'ner-1'"):
        read_recipe(path, overrides=["ner-1.rate=2", "ner.seed=[7]"])


@pytest.mark.parametrize(
    "override, told",
    [
        ("mlm", "write STAGE.setting=value"),
        ("mlm=3", "write STAGE.setting=value"),
        ("mml.seed=3", "Did you mean 'mlm'"),
        ("mlm.output=x", "the pipeline itself sets `output`"),
        ("mlm.seed=[", "not YAML"),
        ("mlm.seed.x=1", "'seed'"),
        ("ner.seed=[]", "for_each seed"),
    ],
)
def test_wrong_overrides_are_refused(write, override, told):
    path = write([{"name": "mlm", "settings": {"seed": 1}}, {"name": "ner", "for_each": {"seed": [1]}}])
    with pytest.raises(InputError) as refused:
        read_recipe(path, overrides=[override])
    assert told in str(refused.value) and override in str(refused.value)


A = {"name": "a", "settings": {}}


@pytest.mark.parametrize(
    "stages, told",
    [
        ([], "at least one stage"),
        (["a"], "stage 1 must be a mapping"),
        ([{"settings": {}}], "'name' is missing"),
        ([A | {"setings": {}}], "unknown key 'setings'. Did you mean 'settings'"),
        ([A | {"name": "../a"}], "'../a'"),
        ([A | {"name": "a.partial"}], "'a.partial'"),
        ([A | {"run": "data_prep/claen.py"}], "no stage file data_prep/claen.py"),
        ([A | {"launch": "mpirun"}], "'mpirun'"),
        ([A | {"settings": [1]}], "`settings` must be a mapping"),
        ([A | {"settings": {"output": "x"}}], "`output`"),
        ([A | {"for_each": {"seed": 1}}], "for_each seed"),
        ([A | {"for_each": {"seed": [[1]]}}], "for_each seed"),
        ([A | {"for_each": {"head": ["a/b"]}}], "'a-a/b'"),
        ([A | {"for_each": {"head": [1]}, "settings": {"head": 2}}], "'head' is in `settings` and in `for_each`"),
        ([A | {"settings": {"input": "{data_rot}"}}], "unknown placeholder {data_rot}"),
        ([A | {"settings": {"input": "{x"}}], "a single '{'"),
        ([A | {"settings": {"input": "{data_root}"}}], "give --data_root DIR"),
        ([A | {"settings": {"input": "{encoder}"}}], "give --encoder"),
        ([A, A], "two stages are named 'a'"),
        ([A | {"for_each": {"seed": [1, 1]}}], "two stages are named 'a-1'"),
        ([A | {"settings": {"x": ["{stages.b}"]}}], "stage a reads {stages.b}"),
        ([A | {"settings": {"x": "{stages.b}"}}, {"name": "b"}], "Move b up"),
        ([A | {"settings": {"x": "{stages.a}"}}], "a -> a"),
        (
            [A | {"settings": {"x": "{stages.c}"}}, {"name": "b", "settings": {"x": "{stages.a}"}},
             {"name": "c", "settings": {"x": {"y": "{stages.b}"}}}],
            "a -> c -> b -> a",
        ),
    ],
)  # fmt: skip
def test_wrong_recipes_are_refused(write, stages, told):
    path = write([])
    path.write_text(yaml.safe_dump({"name": "try", "stages": [
        {"run": f"own/{SCRIPTS[0]}"} | stage if isinstance(stage, dict) else stage for stage in stages
    ]}))  # fmt: skip
    with pytest.raises(InputError) as refused:
        read_recipe(path)
    assert told in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize(
    "text, told",
    [
        ("name: a\nname: b\n", ":2: the key 'name' is given twice"),
        ("name: a\nstages: [\n", ":3:"),
        ("- a\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("name: a\nstages: []\nsteps: []\n", "unknown key 'steps'"),
        ("name: a\n", "'stages' is missing"),
        ("name: a\nencoder: 3\nstages: [{name: a, run: own/data_prep/clean.py}]\n", "`encoder` must be text"),
    ],
)
def test_wrong_files_are_refused_with_their_line(write, text, told):
    path = write([])
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_recipe(path)
    assert told in str(refused.value) and str(path) in str(refused.value)


def test_a_missing_recipe_names_those_there_are(tmp_path):
    with pytest.raises(InputError, match="demo"):
        read_recipe(tmp_path / "none.yaml")


def test_a_recipe_begins_with_the_stages_of_another(write, tmp_path):
    first = write([{"name": "corpus", "settings": {"input": "{data_root}"}}], data_root="its own")
    first.rename(tmp_path / "first.yaml")
    path = write(
        [{"name": "ner", "settings": {"data": "{stages.corpus}"}}], begins_with="first.yaml", data_root="tweets"
    )
    recipe = read_recipe(path, overrides=["corpus.seed=3"])
    assert recipe.name == "try"
    assert settings(recipe) == {"corpus": {"input": "tweets", "seed": 3}, "ner": {"data": "out/corpus"}}
    assert settings(read_recipe(tmp_path / "first.yaml")) == {"corpus": {"input": "its own"}}
    without = write([{"name": "ner", "settings": {"data": "{stages.corpus}"}}], begins_with="first.yaml")
    assert settings(read_recipe(without))["corpus"] == {"input": "its own"}


@pytest.mark.parametrize(
    "first, told",
    [
        ("recipe.yaml", "begins with itself"),
        ("other.yaml", "by way of .*other.yaml"),
        ("none.yaml", "no such recipe"),
        ("../recipe.yaml", "the name of a recipe beside it"),
        ("", "the name of a recipe beside it"),
        (3, "the name of a recipe beside it"),
    ],
)
def test_wrong_beginnings_are_refused(write, tmp_path, first, told):
    write([A], begins_with="recipe.yaml").rename(tmp_path / "other.yaml")
    with pytest.raises(InputError, match=told):
        read_recipe(write([{"name": "b"}], begins_with=first))


def test_training_stages_are_launched(write):
    stages = [{"name": str(number), "run": f"own/{script}"} for number, script in enumerate(SCRIPTS)]
    recipe = read_recipe(write([*stages, {"name": "3", "run": f"own/{SCRIPTS[1]}", "launch": "python"}]))
    assert [stage.launch for stage in recipe.stages] == ["python", "accelerate", "accelerate", "python"]


def test_the_resolved_recipe_is_a_recipe_of_the_same_stages(write, tmp_path):
    path = write(
        [
            {"name": "corpus", "settings": {"input": "{data_root}", "note": "{{x}}", "nothing": None}},
            {"name": "ner", "for_each": {"seed": [1, 2]}, "settings": {"data": "{stages.corpus}", "top": "{output}"}},
        ]
    )
    recipe = read_recipe(path, data_root="a {b}")
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    again = read_recipe(tmp_path / "resolved.yaml")
    assert settings(again, "elsewhere") == settings(recipe, "elsewhere")
    assert [stage.reads for stage in again.stages] == [stage.reads for stage in recipe.stages]
    assert [stage.script for stage in again.stages] == [stage.script for stage in recipe.stages]


def test_there_are_bundled_recipes():
    assert {path.stem for path in BUNDLED} >= {"demo", "tmn_tiny", "tmn_small"}


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_recipes_resolve(path):
    recipe = read_recipe(path, data_root=None if path.stem == "demo" else "DATA")
    assert recipe.name == path.stem and recipe.description
    assert {stage.script.parent.parent for stage in recipe.stages} == {PROJECT}
