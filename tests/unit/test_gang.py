"""What the gang has the learners compute: all that can change the weights, and nothing else."""

import asyncio
import gzip
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors.learning.gang import LearnerGang
from actors.learning.step import StepTrainer
from actors.learning.supervisor import LearnerSupervisor
from actors.learning.tracing import traced
from pipeline.learning.packing import Item, build_micro_batch
from pipeline.learning.policy import inputs_of, tensors
from pipeline.run.metrics import UpdateResult, step_row
from pipeline.sections import ObjectiveSection
from tests.support.groups import record_of
from tests.support.policies import small_policy
from tests.support.reading import SECTION_FIRST, reading_group

DIFFERENT, SOME_AT_THE_MEAN, EQUAL, ZERO = [1, 0, 0, 0.5], [1, 0, 0.5, 0.5], [1, 1, 1, 1], [0, 0, 0, 0]
REWARDS = [DIFFERENT, SOME_AT_THE_MEAN, EQUAL, ZERO]


@pytest.fixture(scope="module")
def groups():
    """Sections that are worth a split."""
    rng = np.random.default_rng(0)
    return [reading_group(rng, SECTION_FIRST, section=20, part=5, name=str(i), version=3) for i in range(len(REWARDS))]


def records_of(groups, rewards=REWARDS) -> list:
    return [record_of(group, str(i), r) for i, (group, r) in enumerate(zip(groups, rewards, strict=True))]


class Engine:
    """A plain optimizer of one process in the place of ZeRO-3."""

    device = "cpu"

    def __init__(self, objective: ObjectiveSection):
        self.policy = small_policy("qwen2", 1)
        self._reference = small_policy("qwen2", 2) if objective.kl_coefficient else None
        self._optimizer = torch.optim.SGD(self.policy.parameters(), lr=0.1)
        self.forests: list = []  # of all passes through the policy

    def forward(self, *inputs):
        self.forests.append(inputs[-1])
        return self.policy(*inputs)

    @torch.no_grad()
    def reference(self, *inputs):
        return None if self._reference is None else self._reference(*inputs)[0]

    def backward(self, loss, last):
        loss.backward()

    def step(self):
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1e9).item()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm, 0.1

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.policy.parameters()])


class Gang(LearnerGang):
    """One rank, in this process."""

    def __init__(self, config):
        self.config, self.size = config, 1
        self.engine = Engine(config.objective)
        calls = {"fetch": self._fetch, "train": self._train}
        self.ranks = [SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})]

    async def _fetch(self, refs):
        self._groups = {index: ref for index, (ref,) in refs.items()}
        return []

    async def _train(self, version, updates, advantages, rewards, trace, shown):
        numbers = self._groups, advantages, rewards
        trainer = StepTrainer(self.engine, self.config.objective, *numbers, moved=lambda: None, shown=shown)
        with traced(trace):
            rows = trainer.train(version, updates)
        self.shown = trainer.logprobs
        return rows

    async def _together(self, calls, limit_s=None):
        return [await call for call in calls]


class ComputesAll(Gang):
    def _to_compute(self, record):
        return record.prefixes.where(record.response_lengths > 0)


def config_with(tiny_config, updates: int = 1, **objective):
    return replace(
        tiny_config,
        objective=replace(tiny_config.objective, **objective),
        train=replace(tiny_config.train, updates_per_step=updates),
        learner=replace(tiny_config.learner, micro_batch_tokens=400),
    )


def trained(gang: Gang, groups, rewards=REWARDS) -> list[UpdateResult]:
    records = records_of(groups, rewards)
    return asyncio.run(gang.train(0, 4, list(zip(records, groups, strict=True))))


def conversations(tree) -> set[int]:
    return set(tree.order.tolist())


def with_responses(record, chosen=None) -> set[int]:
    has_response = record.response_lengths > 0
    return set(np.flatnonzero(has_response if chosen is None else has_response & chosen).tolist())


def test_conversations_without_an_advantage_are_not_computed(tiny_config, groups):
    gang = Gang(config_with(tiny_config, kl_coefficient=0.0, entropy_coefficient=0.0))
    different, some, equal, zero = (conversations(gang._to_compute(record)) for record in records_of(groups))
    records = records_of(groups)
    assert different == with_responses(records[0]) and len(different) < len(groups[0].lengths)  # some are empty
    assert some == with_responses(records[1], groups[1].episodes < 2)
    assert equal == zero == set()


@pytest.mark.parametrize(
    "objective",
    [{"kl_coefficient": 0.1}, {"entropy_coefficient": 0.1}, {"entropy_coefficient": -0.1}, {"loss": "mine:loss"}],
)
def test_with_another_term_all_responses_are_computed(tiny_config, groups, objective):
    terms = {"kl_coefficient": 0.0, "entropy_coefficient": 0.0, "entropy_weight": "one", **objective}
    gang = Gang(config_with(tiny_config, **terms))
    for record in records_of(groups):
        assert conversations(gang._to_compute(record)) == with_responses(record)


def test_an_entropy_term_that_rewards_of_0_weight_away_computes_nothing(tiny_config, groups):
    gang = Gang(config_with(tiny_config, kl_coefficient=0.0, entropy_coefficient=0.1, entropy_weight="reward"))
    *rewarded, zero = records_of(groups)
    assert all(conversations(gang._to_compute(record)) == with_responses(record) for record in rewarded)
    assert not len(gang._to_compute(zero))


@pytest.mark.parametrize("updates", [1, 2])
def test_the_log_probs_of_sampled_episodes_are_kept_and_training_is_the_same(tiny_config, groups, updates):
    """Of the first episode of the first two groups, in a step with samples; no others, and none in another step."""
    config = config_with(tiny_config, updates, entropy_coefficient=0.1, entropy_weight="one")
    sampling, plain = (
        Gang(replace(config, train=replace(config.train, episodes_shown=shown, episodes_every=7))) for shown in (2, 0)
    )
    for gang in (sampling, plain):
        trained(gang, groups)
    assert torch.equal(sampling.engine.weights(), plain.engine.weights()) and plain.shown == {}
    records = records_of(groups)
    assert set(sampling.shown) == {(g, c) for g in (0, 1) for c in with_responses(records[g], groups[g].episodes == 0)}
    for (g, c), logprobs in sampling.shown.items():
        assert len(logprobs) == len(groups[g].response(c)) and logprobs.dtype == np.float32
        if updates == 1:  # all under the weights before the step
            row = build_micro_batch([Item(g, c, 0)], {g: groups[g]}, {g: np.zeros(99)}, {g: np.zeros(9)})
            with torch.no_grad():
                alone, _ = small_policy("qwen2", 1)(*inputs_of(tensors(row, "cpu")))
            assert logprobs == pytest.approx(alone.numpy(), abs=1e-5)
    asyncio.run(sampling.train(1, 4, list(zip(records, groups, strict=True))))
    assert sampling.shown == {}


@pytest.mark.parametrize("updates", [1, 2])
def test_the_weights_are_those_of_computing_everything(tiny_config, groups, updates):
    config = config_with(tiny_config, updates, kl_coefficient=0.0, entropy_coefficient=0.0)
    gang, whole = Gang(config), ComputesAll(config)
    start = gang.engine.weights()
    results, expected = trained(gang, groups), trained(whole, groups)
    moved = whole.engine.weights() - start
    assert (gang.engine.weights() - whole.engine.weights()).norm() < 1e-6 * moved.norm() + 1e-7 * start.norm()
    assert [u.grad_norm for u in results] == pytest.approx([u.grad_norm for u in expected], rel=1e-5)
    # Where nothing is computed, everything is counted.
    tokens = sum(len(group.logprobs) for group in groups)
    row, of_all = (step_row(1, 5, records_of(groups), each, []) for each in (results, expected))
    for key in ("tokens_trained", "staleness_tokens", "staleness_mean", "staleness_max", "reward", "conversations"):
        assert row[key] == of_all[key], key
    assert row["tokens_trained"] == tokens and row["staleness_tokens"] == [0, tokens]
    assert row["loss"] == pytest.approx(of_all["loss"], abs=1e-6)
    assert 0 < row["tokens_computed"] < 0.6 * of_all["tokens_computed"]
    # The first two groups, without empty responses and, of the second, the two episodes at the mean.
    computed = [(groups[0], np.ones(4)), (groups[1], np.array([1, 1, 0, 0]))]
    lengths = [(g.lengths - 1)[(np.diff(g.response_offsets) > 0) & (of[g.episodes] > 0)].sum() for g, of in computed]
    assert row["tokens_computed"] / (1 - row["tokens_shared_share"]) == pytest.approx(sum(lengths))


def test_a_step_in_which_nothing_is_computed_changes_nothing_and_has_a_row(tiny_config, groups):
    gang = Gang(config_with(tiny_config, 2, kl_coefficient=0.0, entropy_coefficient=0.0))
    before, rewards = gang.engine.weights(), [EQUAL, ZERO, EQUAL, ZERO]
    results = trained(gang, groups, rewards)
    assert torch.equal(gang.engine.weights(), before)
    assert [update.grad_norm for update in results] == [0.0, 0.0] and not any(update.skipped for update in results)
    row = step_row(1, 5, records_of(groups, rewards), results, [])
    tokens = sum(len(group.logprobs) for group in groups)
    assert row["tokens_trained"] == tokens and row["staleness_tokens"] == [0, tokens]
    assert row["tokens_computed"] == row["tokens_recomputed"] == row["loss"] == row["logprob_mismatch_tokens"] == 0
    unknown = ("tokens_shared_share", "entropy", "kl", "clip_fraction", "importance_mean", "importance_max")
    for key in (*unknown, "logprob_mismatch_mean", "logprob_mismatch_max"):
        assert row[key] is None, key
    assert row["groups_of_equal_reward"] == 4 and row["updates"] == 2
    json.dumps(row, allow_nan=False)


def test_the_passes_of_proximal_and_policy_share_prefixes(tiny_config, groups):
    """Of each micro-batch one pass at the start of the step, and one when it is trained."""
    gang = Gang(config_with(tiny_config, 2, kl_coefficient=0.1))
    first, second = trained(gang, groups)
    counts = [update.ranks[0]["micro_batches"] for update in (first, second)]
    assert len(gang.engine.forests) == counts[0] + 2 * counts[1]
    assert gang.engine.forests[: counts[1]] == gang.engine.forests[-counts[1] :]
    assert sum(forest.tokens for forest in gang.engine.forests) == first.work.computed + 2 * second.work.computed
    assert first.work.shared > 0 and any(forest.levels for forest in gang.engine.forests)


def test_a_profiled_step_leaves_a_trace_without_data(tiny_config, groups, tmp_path):
    config, folder = config_with(tiny_config, entropy_coefficient=0.0), tmp_path / "profiles"
    gang, plain = Gang(config), Gang(config)
    records = list(zip(records_of(groups), groups, strict=True))
    asyncio.run(gang.train(6, 4, records, str(folder)))
    asyncio.run(plain.train(6, 4, records))
    assert torch.equal(gang.engine.weights(), plain.engine.weights())
    (file,) = folder.iterdir()
    assert file.name == "step-7-rank-0.json.gz"
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert {"aten::mm", "aten::embedding"} <= {event["name"] for event in events}
    known = {key for event in events if event.get("cat") == "cpu_op" for key in event["args"]}
    assert known <= {"External id", "Record function id", "Sequence number", "Fwd thread id", "Ev Idx"}


def test_a_trace_that_cannot_be_written_stops_no_training(tmp_path, caplog):
    (tmp_path / "file").touch()
    with traced(str(tmp_path / "file" / "step-1-rank-0.json.gz")):
        result = torch.ones(2).sum()
    assert result == 2 and "no trace in" in caplog.text


@pytest.mark.parametrize(("steps", "profiled"), [([], []), ([2, 3], [2, 3]), ([1, 1], [1]), ([4, 4], [4])])
def test_the_steps_that_are_asked_for_are_profiled(tiny_config, steps, profiled):
    seen = {}

    class Traces:
        async def train(self, step, version, groups, traces):
            seen[step + 1] = traces
            return []

    learners = SimpleNamespace(
        config=replace(tiny_config, train=replace(tiny_config.train, profile_steps=steps)),
        _run_folder="/runs/a",
        _gang=Traces(),
    )
    for step in range(5):
        asyncio.run(LearnerSupervisor.train(learners, step, step, []))
    assert {step for step, traces in seen.items() if traces} == set(profiled)
    assert set(seen.values()) <= {"", "/runs/a/profiles"}
