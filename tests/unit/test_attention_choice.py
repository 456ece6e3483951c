"""Which kernels compute the learner's attention, on GPUs that are not there."""

import pytest
import torch

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.fine_tuning.config import FineTuningConfig, check_fine_tuning
from pipeline.learning import flash_attention
from pipeline.learning.attention_choice import FLASH, VALUES, choose_attention
from pipeline.learning.flash_attention import Heads, activate, select_attention, unavailable
from tests.support.policies import small_policy

AMPERE, HOPPER, BLACKWELL, CONSUMER, TURING = (8, 0), (9, 0), (10, 0), (12, 0), (7, 5)
CPU, HEADS = torch.device("cpu"), Heads(4, 2, 16)
MISSING = "ModuleNotFoundError: No module named 'there'"


def chosen(value="auto", capability=HOPPER, dtype="bfloat16", head=128, there=tuple(FLASH)):
    return choose_attention(value, capability, dtype, head, lambda name: "" if name in there else MISSING)


@pytest.mark.parametrize(
    ("capability", "there", "name"),
    [
        (HOPPER, ("fa2", "fa3", "fa4"), "fa3"),
        (HOPPER, ("fa2", "fa4"), "fa4"),
        (HOPPER, ("fa2",), "fa2"),
        (HOPPER, (), "padded"),
        (BLACKWELL, ("fa2", "fa3", "fa4"), "fa4"),
        (BLACKWELL, ("fa2", "fa3"), "fa2"),
        (AMPERE, ("fa2", "fa3", "fa4"), "fa2"),
        (CONSUMER, ("fa2", "fa3", "fa4"), "fa2"),
        (TURING, ("fa2", "fa3", "fa4"), "padded"),
        (None, ("fa2", "fa3", "fa4"), "padded"),
    ],
)
def test_auto_is_the_fastest_that_the_device_and_the_packages_have(capability, there, name):
    assert chosen(capability=capability, there=there).name == name


def test_auto_is_padded_in_float32_and_for_heads_that_flash_attention_lacks():
    assert chosen(dtype="float16").name == "fa3"
    for case in ({"dtype": "float32"}, {"head": 12}, {"head": 264}, {"head": None}):
        assert chosen(**case).name == "padded"
    assert [chosen(capability=BLACKWELL, head=head).name for head in (128, 192, 256)] == ["fa4", "fa2", "fa4"]


def test_auto_says_why_a_faster_one_of_this_device_is_not_used():
    assert str(chosen(there=("fa2", "fa4"))) == f"fa4; not fa3: {MISSING}"
    assert str(chosen(capability=AMPERE, there=("fa2",))) == "fa2"  # this device has no faster one
    assert str(chosen(there=())) == f"padded; not fa3: {MISSING}; not fa4: {MISSING}; not fa2: {MISSING}"


@pytest.mark.parametrize("value", VALUES)
def test_a_named_one_is_used_where_it_can_be(value):
    assert value == "auto" or chosen(value) == (value, {})
    assert value != "padded" or chosen(value, None, "float32", None, ()) == (value, {})


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"value": "fa2", "capability": None}, r"fa2: it needs a GPU .*\(learner\.num_gpus\)"),
        ({"value": "fa2", "capability": TURING}, r"fa2: .*compute capability 8\.x to 12\.x, and this one has 7\.5"),
        ({"value": "fa3", "capability": AMPERE}, r"fa3: .*compute capability 9\.x, and this one has 8\.0"),
        ({"value": "fa4", "capability": CONSUMER}, r"fa4: .*compute capability 9\.x to 10\.x, and this one has 12\.0"),
        ({"value": "fa3", "dtype": "float32"}, r"fa3: it needs model\.dtype=bfloat16, and the weights are in float32"),
        ({"value": "fa2", "head": 12}, "fa2: heads of 12 numbers are not supported: it takes multiples of 8 up to 256"),
        ({"value": "fa2", "head": 264}, "fa2: heads of 264 numbers"),
        ({"value": "fa4", "capability": BLACKWELL, "head": 192}, "fa4: heads of 192 numbers .* up to 128, or 256"),
        ({"value": "fa3", "head": None}, "fa3: the size of the model's heads is unknown"),
        ({"value": "fa3", "there": ()}, f"fa3: {MISSING}. It needs FlashAttention-3, built for the installed torch"),
        ({"value": "fa4", "there": ()}, f"fa4: {MISSING}. It needs flash-attn-4==4.0.0b19"),
    ],
)
def test_a_named_one_that_cannot_be_used_is_an_error_that_says_what_it_needs(case, said):
    with pytest.raises(ValueError, match=said):
        chosen(**case)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.attention=fast"], "model.attention='fast' must be one of auto, padded, fa2, fa3, fa4"),
        (["model.attention=fa2"], "model.attention=fa2 needs GPUs: set learner.num_gpus"),
        (
            ["model.attention=fa3", "learner.num_gpus=1", "model.dtype=float32"],
            "model.attention=fa3 needs model.dtype=bfloat16",
        ),
    ],
)
def test_what_no_device_could_do_is_refused_before_anything_starts(arguments, said):
    config = load_config(["preset=fine_tune_tiny", *arguments], FineTuningConfig)
    with pytest.raises(ConfigError, match=said):
        check_fine_tuning(config)


def test_on_a_cpu_a_policy_computes_padded_and_refuses_the_others():
    assert small_policy("llama").attention.name == "padded"
    assert select_attention("padded", CPU, torch.float32, HEADS).name == "padded"
    with pytest.raises(ValueError, match="fa2: it needs a GPU"):
        select_attention("fa2", CPU, torch.bfloat16, HEADS)


# Activation and trial, with stand-ins for torch's registry.


@pytest.fixture
def active(monkeypatch):
    """What torch's registry has active, in a list of one."""
    names = [None]
    monkeypatch.setattr(flash_attention, "current_flash_attention_impl", lambda: names[0])
    monkeypatch.setattr(flash_attention, "activate_flash_attention_impl", lambda name: names.__setitem__(0, name))
    monkeypatch.setattr(flash_attention, "restore_flash_attention_impl", lambda: names.__setitem__(0, None))
    return names


def test_the_chosen_one_is_activated_and_torchs_own_comes_back(active):
    order = {"fa3": "FA3", "fa4": "FA4", "fa2": None}
    for name, wanted in [*order.items(), *order.items(), ("fa4", "FA4"), ("fa4", "FA4"), ("padded", None)]:
        activate(name)
        assert active == [wanted]


def test_torch_knows_the_names():
    assert set(torch.nn.attention.list_flash_attention_impls()) == {f.torch_name for f in FLASH.values()} - {""}


def parts_with(change):
    """`parts_of` whose kernels' outputs are changed unless they are padded."""
    plain = flash_attention.parts_of

    def parts_of(forest, device, chosen):
        parts = plain(forest, device, "padded")
        if chosen != "padded":
            forward = parts.kernel.forward
            parts.kernel.forward = lambda *given: change(*forward(*given))
        return parts

    return parts_of


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda out, lse: (out, lse), ""),
        (lambda out, lse: (1.2 * out, lse), "off those of padded attention"),
        (lambda out, lse: (out, lse + 1.0), "off those of padded attention"),
        (lambda out, lse: (out * torch.nan, lse), "its results are nan off"),
        (lambda out, lse: (out, lse, None, None, None), "ValueError: too many values to unpack"),
    ],
)
def test_one_whose_results_are_wrong_or_that_raises_is_not_used(active, monkeypatch, change, why):
    monkeypatch.setattr(flash_attention, "parts_of", parts_with(change))
    said = unavailable("fa3", CPU, torch.bfloat16, HEADS)
    assert why in said and bool(said) == bool(why)
    assert active == ([None] if why else ["FA3"])


def test_a_missing_package_is_found_by_torch_itself():
    assert "No module named 'flash_attn_interface'" in unavailable("fa3", CPU, torch.bfloat16, HEADS)
    assert "No module named 'flash_attn'" in unavailable("fa4", CPU, torch.bfloat16, HEADS)
