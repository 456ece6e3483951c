"""How a group comes by its record: from the scorer's numbers and the generator's notes."""

import asyncio
from dataclasses import replace

from tests.support.simulation import simulate


def test_a_record_says_who_made_the_group_and_what_was_lost_on_the_way(tiny_config, tmp_path, monkeypatch):
    train = replace(tiny_config.train, steps=6, groups_per_step=4, max_staleness=1)
    wandb, data = replace(tiny_config.wandb, mode="disabled"), replace(tiny_config.data, max_bad_share=0.2)
    config, records = replace(tiny_config, train=train, wandb=wandb, data=data), []

    async def main():
        run = await simulate(config, tmp_path, monkeypatch, problems=25, deadly={"p2"}, seconds=0.01)
        learn = run.coordinator.learners.train

        async def learn_and_note(step, version, groups):
            records.extend(record for record, _ in groups)
            return await learn(step, version, groups)

        run.coordinator.learners.train = learn_and_note
        await asyncio.wait_for(run.train(), 60)
        return run

    run = asyncio.run(main())
    assert len({record.group_id for record in records}) == len(records) == 24
    assert {record.generator for record in records} <= set(run.generators.names)
    assert {record.generation_seconds for record in records} == {1.0}
    # Those that ran beside the deadly problem have moved; what a generator lost is known only by its bound.
    moved = [record for record in records if record.moves]
    assert moved and all(r.redone_conversations == (r.moves - 1) * train.group_size for r in moved)
    assert all(record.redone_conversations == 0 for record in records if not record.moves)
    assert run.coordinator.accounts.moves == sum(record.moves for record in records)
    # A group has one priority wherever it runs; those admitted earlier go first.
    assert all(len(set(run.generators.priorities[r.group_id])) == 1 for r in moved)
    given = [priorities[0] for priorities in run.generators.priorities.values()]
    assert given == sorted(set(given))
