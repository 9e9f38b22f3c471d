"""Settings: one place, typed, and refused with every problem at once."""

import pytest

from finer1_lite.presets import Preset

ALL = [Preset.lab, Preset.lab_photos, Preset.t4, Preset.l4, Preset.a100]


@pytest.mark.parametrize("make", ALL)
def test_every_preset_passes_its_own_check(make):
    assert make().check() == make()


def test_changes_reach_the_stages_and_leave_the_original_alone():
    lab = Preset.lab()
    changed = lab.with_(shots=2, sft__steps=3, tapo__groups=5)
    assert (changed.shots, changed.sft.steps, changed.tapo.groups) == (2, 3, 5)
    assert lab == Preset.lab() != changed


def test_unknown_settings_are_all_named():
    with pytest.raises(ValueError, match="colour.*sft__speed"):
        Preset.lab().with_(colour="red", sft__speed=1)


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


def test_a_stage_is_not_replaced_by_a_number():
    with pytest.raises(ValueError, match="tapo"):
        Preset.lab().with_(tapo=5)


def test_the_gpu_presets_differ_from_the_lab_in_numbers_alone():
    assert Preset.lab().to_dict().keys() == Preset.t4().to_dict().keys()
    assert all(make().quantize == "nf4" for make in ALL[2:])
