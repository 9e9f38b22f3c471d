"""Settings: one place, typed, and refused with every problem at once."""

import copy
import json
import math
import pickle

import pytest

from finer1_lite.presets import Preset, SFTSettings, TAPOSettings

ALL = [Preset.lab, Preset.lab_photos, Preset.colab, Preset.t4, Preset.l4, Preset.a100]
FIELDS = {
    f"{stage}{name}": field
    for stage, settings in (("", Preset), ("sft__", SFTSettings), ("tapo__", TAPOSettings))
    for name, field in settings.model_fields.items()
    if name not in ("sft", "tapo")
}
WRONG = {  # type -> values that are none of it
    int: [True, 1.0, "3", None, [], -1, math.inf],
    float: [True, "0.1", None, [], math.nan, -math.inf, 10**400],
    bool: [0, 1, "true", None, []],
    str: [1, True, None, ["lab"]],
}


def problems_of(**changes) -> list[str]:
    with pytest.raises(ValueError) as error:
        Preset.lab().with_(**changes)
    assert type(error.value) is ValueError  # no library's own error, which names other things
    return str(error.value).splitlines()[1:]


@pytest.mark.parametrize("make", ALL)
def test_every_preset_passes_its_own_check(make):
    assert Preset(**make().to_dict()) == make()


def test_changes_reach_the_stages_and_leave_the_original_alone():
    lab = Preset.lab()
    changed = lab.with_(shots=2, sft__steps=3, tapo__groups=5)
    assert (changed.shots, changed.sft.steps, changed.tapo.groups) == (2, 3, 5)
    assert lab == Preset.lab() != changed


def test_unknown_settings_are_all_named_beside_wrong_values():
    problems = problems_of(colour="red", sft__speed=1, shots__few=2, shots=0)
    assert [p.split(" = ")[0] for p in problems] == [
        "- shots",
        "- sft.speed",
        "- colour",
        "- shots__few",
    ]
    assert all("no such setting" in problem for problem in problems[1:])


def test_impossible_values_are_all_named():
    wrong = {
        "eval_batch": 0,
        "quantize": "int3",
        "sft__steps": True,
        "tapo__groups": "many",
        "tapo__scored_on": "both",
        "tapo__learning_rate": "fast",
        "tapo__negative_grad": 1,
    }
    with pytest.raises(ValueError) as error:
        Preset.lab().with_(**wrong)
    for key in wrong:
        assert key.replace("__", ".") in str(error.value)


@pytest.mark.parametrize("key", FIELDS)
def test_no_value_of_another_type_is_taken(key):
    """Nor converted: "3" is no number and True is no 1."""
    name = key.replace("__", ".")
    for value in WRONG.get(FIELDS[key].annotation, [1, None, True, [], "sideways"]):
        (problem,) = problems_of(**{key: value})
        assert problem.startswith(f"- {name} = {value!r}: ") and len(problem) > len(name) + 10


def test_a_whole_number_is_a_number():
    assert Preset.lab().with_(tapo__temperature=0).tapo.temperature == 0.0


@pytest.mark.parametrize("value", [5, {"groups": 4}, TAPOSettings()])
def test_a_stage_is_not_replaced_as_a_whole(value):
    problems = problems_of(tapo=value, tapo__groups=0)
    assert "tapo.groups" in problems[0] and "- tapo as a whole = " in problems[1]
    with pytest.raises(ValueError, match="tapo"):
        Preset(tapo=5)


def test_contradictions_are_not_told_of_values_that_are_wrong_by_themselves():
    (problem,) = problems_of(tapo__groups="many", tapo__updates=9)
    assert problem.startswith("- tapo.groups = 'many': ")
    (problem,) = problems_of(max_new_tokens=0, tapo__overlong_tokens=97)
    assert problem.startswith("- max_new_tokens = 0: ")


def test_the_gpu_presets_differ_from_the_lab_in_numbers_alone():
    assert Preset.lab().to_dict().keys() == Preset.t4().to_dict().keys()
    assert all(make().quantize == "nf4" for make in ALL[2:])


@pytest.mark.parametrize("make", ALL[2:])
def test_a_sitting_shows_each_row_of_stage_1_about_twice_and_asks_everything_once(make):
    """30 classes x 4 photographs, whose chains stand in up to three rows each."""
    preset = make()
    rows = 30 * preset.shots * 3
    assert 1.5 <= preset.sft.steps * preset.sft.batch / rows <= 2.5
    assert preset.tapo.steps * preset.tapo.groups >= 2 * 30 * preset.shots  # anchors: twice
    assert preset.test_pictures % preset.eval_batch == 0  # no batch is half empty
    assert preset.max_new_tokens == (512 if preset.name == "a100" else 256)


def test_a_preset_is_frozen_hashable_and_survives_workers_and_json():
    preset = Preset.lab().recipe("grpo")
    with pytest.raises(ValueError):
        preset.shots = 3
    for twin in (pickle.loads(pickle.dumps(preset)), copy.deepcopy(preset)):
        assert twin == preset and hash(twin) == hash(preset)
    written = json.loads(json.dumps(preset.to_dict()))
    assert Preset(**written) == preset and preset.tapo.clip_dual == math.inf


def test_every_setting_says_what_it_is():
    assert all(len(field.description) > 4 for field in FIELDS.values())
