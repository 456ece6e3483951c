"""TRL's side of `jobs.bench.peers`, a process with .venv-peers on its path. The last line printed is its steps."""

import json
import sys
import time
from pathlib import Path

from jobs.bench.peers import LEARNING_RATE, MODEL, SAMPLES, Settings, vowels
from pipeline.text import encode_text, load_tokenizer


def main(arguments: list[str]) -> int:
    given = json.loads(arguments[0])
    settings, folder = Settings(**given["settings"]), Path(given["folder"])
    steps = train(settings, folder, given["steps"])
    print(json.dumps(steps))
    return 0


def train(settings: Settings, folder: Path, steps: int) -> list[tuple[float, int, int]]:
    """Train with `GRPOTrainer`; return each step's seconds, episodes and response tokens.

    Raises:
        RuntimeError: TRL reads a prompt as other tokens than this system.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        """Notes when training begins and when each step has ended."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, *_, **__) -> None:
            self.times.append(time.perf_counter())

        on_step_end = on_train_begin

    path = str(folder / MODEL)
    tokenizer = AutoTokenizer.from_pretrained(path)
    lines = (folder / SAMPLES).read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["question"] for line in lines]
    if [tokenizer(prompt)["input_ids"] for prompt in prompts] != [
        encode_text(load_tokenizer(path), prompt) for prompt in prompts
    ]:
        raise RuntimeError(f"TRL reads the prompts as other tokens: the tokenizer of {settings.model} adds its own")

    lengths: list[list[int]] = []  # of the responses of each step

    def reward(completions: list[str], completion_ids: list[list[int]], **_) -> list[float]:
        lengths.append(list(map(len, completion_ids)))
        return list(map(vowels, completions))

    clock = Clock()
    episodes = settings.prompts * settings.group_size
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
        max_steps=steps,
        num_generations=settings.group_size,
        max_completion_length=settings.response_tokens,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=episodes // settings.micro_batch,
        gradient_checkpointing=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=0.0,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=path,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    seconds = [end - begin for begin, end in zip(clock.times, clock.times[1:], strict=False)]
    return [(took, len(of), sum(of)) for took, of in zip(seconds, lengths, strict=True)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
