"""The simulated run of the coordinator's benchmark, with few generators."""

from jobs.bench import coordinator, stand_ins
from jobs.bench.measuring import in_own_process


def test_a_run_between_stand_ins_trains_all_its_steps_and_says_what_it_used():
    groups = stand_ins.GROUPS_PER_STEP * 2 * (coordinator.WARM_UP + 2)
    result = in_own_process("coordinator", 2, {"groups": groups, "groups_per_second": 8.0})
    assert len(result["cpu"]) == 2 and all(0 < seconds < 60 for seconds in result["cpu"])
    assert len(result["memory"]) == 3 and all(20 < mib < 2000 for mib in result["memory"])
    assert result["journal"] > 0 and result["scorer"] > 0
