"""Make the embedded default's model: a supervised warm start on demonstrations of the tiny language.

    python -m jobs.warmstart output=runs/warmstart steps=600 stop_after=474 seed=0

The budget is counted in steps, so a run can be repeated. `steps` stretches the curriculum and the learning
rate schedule; `stop_after` ends the run before its time, which leaves a model that can do some of the task
and that reinforcement learning can improve. docs/tiny-model.md tells why the recipe is as it is.

Left out on purpose: checkpoints and resuming (a run takes minutes), and options for the recipe's constants.
"""

import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.agents.memory import MemoryAgent
from pipeline.config import AgentConfig, load_config
from pipeline.documents.synthetic import (
    CHUNK_FACTS,
    KINDS,
    PEOPLE,
    PETS,
    VALUES,
    Fact,
    answer_text,
    draw_distractor,
    draw_question,
    facts_text,
    synthetic_problem,
    tiny_model_config,
    tiny_tokenizer,
)
from pipeline.episodes import Completion, Episode, run_episode
from pipeline.problems import Problem
from pipeline.prompts import PROMPT_TEMPLATES, Prompts
from pipeline.scoring import boxed_match

TOKENS_PER_STEP = 4096
MUON_LEARNING_RATE = 0.02  # on matrices
ADAMW_LEARNING_RATE = 2e-3  # on embeddings and norms
MAX_GRAD_NORM = 1.0
CONSTANT_SHARE = 0.5  # of the steps at the full learning rate; a cosine to zero follows
MEMORY_FACTS = 4
DRILL_FACTS = 8

# The mixture of examples, by the share of the steps up to which it holds: whether a subject is there and what
# follows it (existence); then reading a chunk into an empty memory; last, updating a memory that holds something.
CURRICULUM = [
    (0.375, {"existence": 1.0}),
    (0.75, {"first_update": 0.60, "answer": 0.15, "existence": 0.25}),
    (1.0, {"update": 0.60, "answer": 0.15, "existence": 0.25}),
]

EVALUATION_EPISODES = 512
EVALUATION_CHUNKS = 8
EVALUATION_SEED = 1_000_000  # far from the seeds that training runs use

# A training example: token ids, and for each whether it is to be learned.
Example = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Settings:
    output: str = "runs/warmstart"
    steps: int = 600
    stop_after: int = 600
    seed: int = 0


def parse_settings(arguments: list[str]) -> Settings:
    """`key=value` arguments as `Settings`. Raises SystemExit with the valid keys when one is wrong."""
    valid = {name: type(value) for name, value in asdict(Settings()).items()}
    values = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        try:
            values[key] = valid[key](value)
        except (KeyError, ValueError):
            kinds = ", ".join(f"{name}=<{kind.__name__}>" for name, kind in valid.items())
            raise SystemExit(f"cannot use {argument!r}; the arguments are {kinds}") from None
    return Settings(**values)


class Examples:
    """Draws training examples, with exactly the prompts that the memory agent will build."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random):
        self.rng = rng
        self.prompts = Prompts(tokenizer, PROMPT_TEMPLATES["tiny"])
        self.vocabulary = tokenizer.get_vocab()
        self.eos = tokenizer.eos_token_id

    def batch(self, mixture: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
        """About `TOKENS_PER_STEP` tokens of examples: ids and labels, int64 [B, L], padded at the right.

        Labels are -100 where there is nothing to learn.
        """
        makers = {name: getattr(self, name) for name in mixture}
        rows, tokens = [], 0
        while tokens < TOKENS_PER_STEP:
            name = self.rng.choices(list(mixture), list(mixture.values()))[0]
            rows.append(makers[name]())
            tokens += len(rows[-1][0])
        ids = torch.full((len(rows), max(len(row) for row, _ in rows)), self.eos)
        labels = torch.full_like(ids, -100)
        for i, (row, learned) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, : len(row)] = torch.tensor([t if use else -100 for t, use in zip(row, learned, strict=True)])
        return ids, labels

    def existence(self) -> Example:
        """One to `DRILL_FACTS` facts, then twice as many subjects, each followed by its value or, if absent, `none`.

        The small drills come first to be learned and lead on to the large ones, which alone teach nothing.
        """
        rng = self.rng
        count = rng.randint(1, DRILL_FACTS)
        queries = rng.sample(PEOPLE + PETS, 2 * count)
        facts = {q: rng.choice(PETS if q in PEOPLE else VALUES[rng.choice(KINDS)]) for q in queries[:count]}
        rng.shuffle(queries)
        prompt = self._encode(f"<bos> <section> {facts_text(list(facts.items()))} <update>")
        answers = self._encode(facts_text([(query, facts.get(query, "none")) for query in queries]))
        return prompt + answers, [False] * len(prompt) + [False, True, False] * len(queries)

    def first_update(self) -> Example:
        """A document's first memory conversation: the memory is empty."""
        kind, question, needed = draw_question(self.rng)
        return self._update(kind, question, needed, 0, self.prompts.empty_memory)

    def update(self) -> Example:
        """A memory conversation from a random memory."""
        kind, question, needed = draw_question(self.rng)
        known = self.rng.randint(0, len(needed))
        return self._update(kind, question, needed, known, self._memory(kind, needed, known))

    def answer(self) -> Example:
        """An answer conversation, from a random memory."""
        rng = self.rng
        kind, question, needed = draw_question(rng)
        known = len(needed) if rng.random() < 0.7 else rng.randrange(len(needed))
        prompt = self.prompts.answer(self._encode(question), self._memory(kind, needed, known))
        return self._respond(prompt, answer_text(needed[:known], known == len(needed)))

    def _update(self, kind: str, question: str, needed: list[Fact], known: int, memory: list[int]) -> Example:
        """Read a random chunk, which in half of the cases holds the next needed fact, if one is missing.

        The new memory is the part of the chain that is then known, and nothing else.
        """
        chunk = [draw_distractor(self.rng, kind, needed) for _ in range(CHUNK_FACTS)]
        if known < len(needed) and self.rng.random() < 0.5:
            chunk[self.rng.randrange(CHUNK_FACTS)] = needed[known]
            known += 1
        prompt = self.prompts.update(self._encode(question), memory, self._encode(facts_text(chunk)))
        return self._respond(prompt, facts_text(needed[:known]) or "none")

    def _memory(self, kind: str, needed: list[Fact], known: int) -> list[int]:
        """The first `known` needed facts; in three memories of ten, useless facts among them."""
        facts = needed[:known]
        if self.rng.random() < 0.3:
            for _ in range(self.rng.randint(1, MEMORY_FACTS - known)):
                facts.insert(self.rng.randint(0, len(facts)), draw_distractor(self.rng, kind, needed))
        return self._encode(facts_text(facts)) or self.prompts.empty_memory

    def _respond(self, prompt: list[int], text: str) -> Example:
        response = self._encode(text) + [self.eos]
        return prompt + response, [False] * len(prompt) + [True] * len(response)

    def _encode(self, text: str) -> list[int]:
        # The words are all known and apart, so this is what the tokenizer would give, only faster.
        return [self.vocabulary[word] for word in text.split()]


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the tied embeddings and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=0.0),
        torch.optim.AdamW(others, lr=ADAMW_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, steps: int) -> float:
    """1 for the first `CONSTANT_SHARE` of the steps, then down a cosine to 0."""
    progress = max(0.0, step / steps - CONSTANT_SHARE) / (1 - CONSTANT_SHARE)
    return 0.5 * (1 + math.cos(math.pi * progress))


def train(model: LlamaForCausalLM, examples: Examples, settings: Settings) -> Iterator[tuple[int, float]]:
    """Train in place; yield the step (from 1) and its mean loss in nats per learned token."""
    optimizers = make_optimizers(model)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: learning_rate_factor(step, settings.steps))
        for o in optimizers
    ]
    for step in range(min(settings.stop_after, settings.steps)):
        mixture = next(mixture for until, mixture in CURRICULUM if step < until * settings.steps)
        ids, labels = examples.batch(mixture)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        for stepper in optimizers + schedulers:
            stepper.step()
        model.zero_grad()
        yield step + 1, loss.item()


class BatchedModel:
    """The `llm` of several agents at once: waits until each of them has asked, then answers all in one batch.

    It samples at temperature 1, or decodes greedily.
    """

    def __init__(self, model, tokenizer, agents: int, sample: bool):
        self.model, self.tokenizer, self.agents = model, tokenizer, agents
        self.options = {"do_sample": sample} | ({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {})
        self.waiting: list[tuple[list[int], asyncio.Future]] = []

    async def __call__(self, prompt: list[int], max_tokens: int) -> Completion:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((prompt, future))
        if len(self.waiting) == self.agents:
            waiting, self.waiting = self.waiting, []
            responses = self._generate([prompt for prompt, _ in waiting], max_tokens)
            for (_, asked), response in zip(waiting, responses, strict=True):
                asked.set_result(response)
        return await future

    def _generate(self, prompts: list[list[int]], max_tokens: int) -> list[Completion]:
        batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        full = self.model.generate(**batch, max_new_tokens=max_tokens, **self.options)
        return [self._completion(row) for row in full[:, batch["input_ids"].shape[1] :].tolist()]

    def _completion(self, row: list[int]) -> Completion:
        eos = self.tokenizer.eos_token_id
        tokens = row[: row.index(eos) + 1] if eos in row else row
        # Nothing is trained on these, so their log-probs are not worth computing.
        return Completion(tokens, [0.0] * len(tokens), [0] * len(tokens), "stop" if eos in row else "length")


def run_episodes(model, tokenizer, problems: list[Problem], config: AgentConfig, sample: bool) -> list[Episode]:
    """One episode of the memory agent for each problem; the documents have the same number of chunks."""
    agent, llm = MemoryAgent(tokenizer, config), BatchedModel(model, tokenizer, len(problems), sample)

    async def run_all() -> list[Episode]:
        return await asyncio.gather(*(run_episode(agent, agent.tokenize(problem), llm) for problem in problems))

    with torch.no_grad():
        return asyncio.run(run_all())


def measure(tokenizer, problems: list[Problem], episodes: list[Episode]) -> dict[str, float]:
    """Accuracy, and what limits it, each as a share.

    written: a needed fact in the chunk, its bridge in the memory: is it in the new memory?
    kept: a needed fact in the old memory: is it in the new one? (for each update)
    answered: all needed facts in the last memory: is the answer right?
    """
    good, total = Counter(), Counter()

    def count(name: str, hit: bool) -> None:
        good[name] += hit
        total[name] += 1

    for problem, episode in zip(problems, episodes, strict=True):
        needed, where = problem.metadata["needed"], problem.metadata["chunks"]
        old = set()
        for chunk, conversation in enumerate(episode.conversations[:-1]):
            text = tokenizer.decode(conversation.response.tokens)
            new = {fact for fact in needed if fact in text}
            for i, fact in enumerate(needed):
                if fact in old:
                    count("kept", fact in new)
                elif where[i] == chunk and old.issuperset(needed[:i]):
                    count("written", fact in new)
            old = new
        right = boxed_match(episode.answer, problem.answers) == 1
        count("accuracy", right)
        count("one_hop" if len(needed) == 1 else "two_hop", right)
        if old.issuperset(needed):
            count("answered", right)
    return {name: round(good[name] / total[name], 4) for name in sorted(total)}


def evaluate(model, tokenizer, chunks: int) -> dict[str, dict[str, float]]:
    """`measure` over `EVALUATION_EPISODES` fresh problems, sampled at temperature 1 and greedily."""
    config = load_config(["preset=tiny"]).agent
    problems = [synthetic_problem(EVALUATION_SEED, i, chunks) for i in range(EVALUATION_EPISODES)]
    model.eval()
    return {
        name: measure(tokenizer, problems, run_episodes(model, tokenizer, problems, config, sample))
        for name, sample in (("sampled", True), ("greedy", False))
    }


def save(model, tokenizer, folder: Path, record: dict) -> None:
    """Write a Hugging Face model folder, and `warmstart.json` with how the model was made."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "warmstart.json").write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: list[str]) -> None:
    settings = parse_settings(arguments)
    torch.set_num_threads(1)  # a model this small gains nothing from more
    torch.manual_seed(settings.seed)
    tokenizer, model = tiny_tokenizer(), LlamaForCausalLM(tiny_model_config())
    examples = Examples(tokenizer, random.Random(f"warmstart-{settings.seed}"))
    start, losses, curve = time.process_time(), [], {}
    for step, loss in train(model, examples, settings):
        losses.append(loss)
        if step % 25 == 0:
            curve[step] = round(sum(losses) / len(losses), 4)
            cpu = time.process_time() - start
            print(f"step {step}/{settings.stop_after} loss {curve[step]} cpu {cpu:.0f}s", flush=True)
            losses = []
    accuracy = evaluate(model, tokenizer, EVALUATION_CHUNKS)
    print(json.dumps(accuracy))
    recipe = {
        **{name: value for name, value in asdict(settings).items() if name != "output"},
        "tokens_per_step": TOKENS_PER_STEP,
        "muon_learning_rate": MUON_LEARNING_RATE,
        "adamw_learning_rate": ADAMW_LEARNING_RATE,
        "max_grad_norm": MAX_GRAD_NORM,
        "constant_share": CONSTANT_SHARE,
        "curriculum": [{"until": until, "mixture": mixture} for until, mixture in CURRICULUM],
    }
    evaluation = {"episodes": EVALUATION_EPISODES, "chunks": EVALUATION_CHUNKS, **accuracy}
    save(model, tokenizer, Path(settings.output), {"recipe": recipe, "evaluation": evaluation, "loss": curve})


if __name__ == "__main__":
    main(sys.argv[1:])
