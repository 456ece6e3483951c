"""The order of the parts in the built-in prompt templates."""

import os
import re

import pytest

from pipeline.agents.memory import MemoryAgent
from pipeline.agents.prompts import TEMPLATES, Prompts, load_template
from pipeline.config import load_config
from pipeline.data.documents.synthetic import tiny_tokenizer
from pipeline.evaluation.config import EvaluationConfig
from pipeline.run.config import load_training_config
from tests.support.byte_tokenizer import byte_tokenizer

CHAT_ORDER = {
    "answer": ["problem", "memory"],
    "direct": ["problem", "document"],
    "closed_book": ["problem"],
}
TINY_ORDER = {name: [*slots, "problem"] for name, slots in CHAT_ORDER.items()}
ORDERS = {
    "facts": CHAT_ORDER
    | {"memory": ["problem", "chunk", "memory", "problem"], "direct": ["problem", "document", "problem"]},
    "memagent": CHAT_ORDER | {"memory": ["problem", "memory", "chunk"]},
    "memagent_chunk_first": CHAT_ORDER | {"memory": ["problem", "chunk", "memory"]},
    "tiny": TINY_ORDER | {"memory": ["problem", "memory", "chunk", "problem"]},
    "tiny_chunk_first": TINY_ORDER | {"memory": ["problem", "chunk", "memory", "problem"]},
}


def test_every_built_in_template_has_its_slots_in_the_order_that_its_name_says():
    found = {
        path.stem: {name: re.findall(r"\{(\w+)\}", text) for name, text in load_template(path.stem).prompts.items()}
        for path in TEMPLATES.iterdir()
    }
    assert found == ORDERS


@pytest.mark.parametrize("papers", ["memagent", "tiny"])
def test_the_chunk_first_layout_has_the_words_of_the_papers_order(papers):
    one, other = load_template(papers), load_template(f"{papers}_chunk_first")
    assert (one.chat, one.empty_memory) == (other.chat, other.empty_memory)
    for name in one.prompts:
        if name == "memory":
            assert sorted(one.prompts[name].split()) == sorted(other.prompts[name].split())
        else:
            assert one.prompts[name] == other.prompts[name]


@pytest.mark.parametrize(("model", "make"), [("memagent", byte_tokenizer), ("tiny", tiny_tokenizer)])
def test_with_the_chunk_first_prompts_of_a_group_differ_from_the_memory_on(model, make):
    tokenizer = make()
    problem, chunk, first, second = [1001, 1002], [1003, 1004, 1005], [2001, 2002], [2003]

    def shared(template: str) -> tuple[list[int], list[int]]:
        """What two memory prompts have in common from the start, and the first of them as a whole."""
        prompts = Prompts(tokenizer, load_template(template), MemoryAgent.slots)
        one, other = (prompts.fill("memory", problem=problem, memory=m, chunk=chunk) for m in (first, second))
        return os.path.commonprefix([one, other]), one

    common, prompt = shared(f"{model}_chunk_first")
    assert common == prompt[: prompt.index(2001)]
    assert [token for token in common if token > 1000] == problem + chunk
    common, prompt = shared(model)
    assert common == prompt[: prompt.index(2001)]
    assert [token for token in common if token > 1000] == problem


def test_all_presets_for_chat_models_have_the_papers_order():
    for preset in ("memagent_7b", "memagent_7b_dapo", "memagent_14b", "smollm2"):
        assert load_training_config([f"preset={preset}"]).agent.prompt_template == "memagent"
    for preset in ("eval_ruler", "eval_ruler_hqa", "eval_smollm2"):
        config = load_config([f"preset={preset}", "model.path=x"], EvaluationConfig)
        assert config.agent.prompt_template == "memagent"
