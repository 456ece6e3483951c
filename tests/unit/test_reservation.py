"""How many learner ranks fit on the nodes."""

from pipeline.sections import LearnerSection


def test_ranks_fit_node_by_node():
    from actors.learning.reservation import ranks_in

    learner = LearnerSection(ranks=4, num_cpus=2, num_gpus=1)
    node = {"CPU": 8, "GPU": 2}
    assert ranks_in([], learner) == 0
    assert ranks_in([node], learner) == 2
    assert ranks_in([{"CPU": 1, "GPU": 8}, {"CPU": 1, "GPU": 8}, {"CPU": 64}], learner) == 0  # enough, but not together
    assert ranks_in([node] * 9, learner) == 4  # no more are wanted
    learner.resources = {"on_demand": 1.0}
    assert ranks_in([node, {**node, "on_demand": 1}], learner) == 1
