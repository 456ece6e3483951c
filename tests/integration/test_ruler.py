"""RULER's problems: their lengths, and that a reader of the document alone gets to the answers."""

import json
import random
import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.data.documents.ruler import RULER_TASKS, RulerSources, ruler_problem
from pipeline.data.documents.ruler.haystack import NOISE
from pipeline.data.documents.ruler.words import pair_words
from pipeline.data.rows import problem_from_row
from pipeline.errors import DataError
from pipeline.rewards.scoring import values_found
from pipeline.sections import AgentSection
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.ruler_sources import COUNTERS, WORDS, count_bytes, count_pieces, count_words, essay, sources

NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")
ESSAY = RulerSources(essay=essay())
NIAH = [task for task in RULER_TASKS if task.startswith("niah")]
FREE = [task for task in RULER_TASKS if not task.startswith("qa")]  # need no file of questions


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a problem of any task, with all that the task needs."""
    folder = tmp_path_factory.mktemp("ruler")
    all_sources = {task: sources(folder, task) for task in RULER_TASKS}

    def make(task, seed=0, index=0, tokens=6000, count=count_pieces):
        return ruler_problem(task, seed, index, tokens, count, all_sources[task])

    return make


def most_tokens(task: str, count) -> int:
    """The longest documents that the small files of questions give are shorter than others."""
    return 4000 if task.startswith("qa") else 60_000


def test_there_are_thirteen_tasks():
    assert len(RULER_TASKS) == len(set(RULER_TASKS)) == 13


@pytest.mark.parametrize("count", COUNTERS)
@pytest.mark.parametrize("task", RULER_TASKS)
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), seed=st.integers(0, 99))
@example(share=0.0, seed=0)
@example(share=1.0, seed=1)
def test_a_document_has_the_wanted_tokens(make, task, count, share, seed):
    least, most = 300, most_tokens(task, count)
    tokens = round(least * (most / least) ** share)
    try:
        problem = make(task, seed, 3, tokens, count)
    except DataError as error:
        needed = int(re.search(r"needs at least (\d+) tokens", str(error))[1])
        assert tokens < needed <= {"cwe": 5500}.get(task, 700)
        tokens = needed + needed // 3  # another length is another sample, whose words may be longer
        problem = make(task, seed, 3, tokens, count)
    assert 0.99 * tokens <= count(problem.document) <= tokens
    assert problem.metadata["tokens"] == count(problem.document)
    assert (problem.metadata["length"], problem.metadata["set"]) == (tokens, task)


@pytest.mark.parametrize("task", RULER_TASKS)
def test_a_tokenizer_of_bytes(make, task):
    tokenizer = byte_tokenizer()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    problem = make(task, tokens=7000, count=count)
    assert 6930 <= count(problem.document) == count_bytes(problem.document) <= 7000


@pytest.mark.parametrize("task", FREE)
def test_a_long_document_takes_few_encodings(task):
    texts = []

    def count(text: str) -> int:
        texts.append(len(text))
        return count_pieces(text)

    problem = ruler_problem(task, 1, 2, 200_000, count, ESSAY)
    assert 198_000 <= problem.metadata["tokens"] <= 200_000
    assert len(texts) <= 9 and sum(texts) <= 4 * len(problem.document)


def test_a_document_of_a_million_tokens():
    for task in ("niah_multikey_2", "cwe"):
        assert ruler_problem(task, 0, 0, 10**6, count_words, ESSAY).metadata["tokens"] >= 990_000


@pytest.mark.parametrize("task", RULER_TASKS)
def test_a_problem_depends_on_the_arguments_alone(make, task):
    first = make(task)
    random.seed(5)
    make(task, index=9)
    assert make(task) == first
    others = [make(task, **change) for change in ({"seed": 1}, {"index": 1}, {"tokens": 5000})]
    assert len({p.id for p in [first, *others]}) == len({p.document for p in [first, *others]}) == 4


@pytest.mark.parametrize("task", RULER_TASKS)
def test_a_problem_survives_its_file_format(make, task):
    problem = make(task)
    fields = ("id", "question", "answers", "document", "task", "metadata")
    row = json.dumps({name: getattr(problem, name) for name in fields})
    assert problem_from_row(json.loads(row), "-") == problem
    assert problem.task == ("qa" if task.startswith("qa") else "values")
    assert problem.id.startswith(f"{task}-6000-0-0")


@pytest.mark.parametrize("count", [count_words, count_bytes])
@pytest.mark.parametrize("task", NIAH)
def test_needles_are_found_by_reading(make, task, count):
    for index in range(12):
        problem = make(task, 7, index, 9000, count)
        needles = NEEDLE.findall(problem.document)
        keys, values = [key for _, key, _ in needles], [value for *_, value in needles]
        asked = {key for key in keys if re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", problem.question)}
        found = {value for _, key, value in needles if key in asked}
        assert found == set(problem.answers) and len(problem.answers) == len(found)
        assert len(asked) == (4 if task == "niah_multiquery" else 1)
        assert all(problem.document.count(value) == 1 for value in problem.answers)
        assert all(problem.document.count(key) == keys.count(key) for key in asked)
        assert len(set(values)) == len(values) and not set(values) & set(keys)
        assert len(set(keys)) == (1 if task == "niah_multivalue" else len(keys))
        number = {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}.get(task, 1)
        assert len(needles) == number or (task in ("niah_multikey_2", "niah_multikey_3") and len(needles) > 20)
        assert values_found(" ".join(problem.answers), problem.answers) == 1
        pattern = r"[1-9]\d{6}" if needles[0][0] == "numbers" else r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
        assert all(re.fullmatch(pattern, value) for value in values)
        assert all(re.fullmatch(pattern if task == "niah_multikey_3" else "[a-z]+-[a-z]+", key) for key in keys)


def test_tens_of_thousands_of_needles_are_all_different():
    for task, key_kind in (("niah_multikey_2", "words"), ("niah_multikey_3", "uuids")):
        problem = ruler_problem(task, 0, 0, 300_000, count_words, ESSAY)
        needles = NEEDLE.findall(problem.document)
        assert len(needles) > 25_000, key_kind
        assert len({key for _, key, _ in needles} | {value for *_, value in needles}) == 2 * len(needles)


def test_no_word_pair_is_a_part_of_another_one():
    adjectives, nouns = pair_words()
    assert len(adjectives) * len(nouns) > 4_000_000
    assert not any(word[k:] in set(adjectives) for word in adjectives[::10] for k in range(1, len(word)))
    beginnings = {word[:k] for word in nouns for k in range(1, len(word))}
    assert not beginnings & set(nouns)


def test_the_haystack_is_what_the_task_says(make):
    noise = make("niah_single_1").document.split("\n")
    assert Counter(line == NOISE for line in noise)[False] <= 2  # the needle and the last line, cut
    prose = make("niah_single_2", tokens=30_000).document
    left = NEEDLE.sub("", prose).replace("  ", " ").strip()
    assert ((" ".join(ESSAY.essay) + " ") * 20).startswith(left)
    assert len(left) > len(" ".join(ESSAY.essay))
    needles = make("niah_multikey_3").document.split("\n")
    assert sum(not NEEDLE.fullmatch(line) for line in needles) <= 1


def test_a_key_or_value_of_the_essay_is_never_a_needle(monkeypatch):
    draws = iter(["grey-seal", "cozy-lamp", "fancy-lamp", "1000000", "1000001"])
    monkeypatch.setattr(
        "pipeline.data.documents.ruler.needles.DRAWS", dict.fromkeys(("words", "numbers"), lambda _: next(draws))
    )
    text = RulerSources(essay=("The Grey-seals are 1000000.", "A cozy-lamp burns."))
    problem = ruler_problem("niah_single_2", 0, 0, 300, count_words, text)
    assert "fancy-lamp" in problem.question and problem.answers == ("1000001",)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "niah_multikey_2", "niah_multivalue"])
def test_needles_stand_at_every_depth_alike(task):
    depths = []
    for index in range(400):
        problem = ruler_problem(task, 3, index, 3000, count_words, ESSAY)
        for needle in problem.metadata["needles"]:
            sentence = next(m for m in NEEDLE.finditer(problem.document) if m[3] == needle["value"])
            assert (
                needle["depth"] == pytest.approx(sentence.start() / len(problem.document))
                and sentence[2] == needle["key"]
            )
            depths.append(needle["depth"])
    bins = Counter(int(depth * 10) for depth in depths)
    expected = len(depths) / 10
    assert sum((bins[b] - expected) ** 2 / expected for b in range(10)) < 27.9  # 9 degrees of freedom, 1 in 1000


@pytest.mark.parametrize("tokens", [300, 20_000])
def test_the_chain_of_variables_is_followed_by_reading(tokens):
    for index in range(20):
        problem = ruler_problem("vt", 0, index, tokens, count_bytes if tokens > 300 else count_words, ESSAY)
        value = re.search(r"assigned the value (\d{5}) in the text\.$", problem.question)[1]
        known, order = {value}, []
        for variable, source in re.findall(r"^VAR ([A-Z]{5}) = (?:VAR )?(\w+)$", problem.document, re.MULTILINE):
            assert source in known  # after the line that it refers to
            known.add(variable)
            order.append(variable)
        assert tuple(order) == problem.answers and len(set(order)) == 5
        assert [n["key"] for n in problem.metadata["needles"]] == order
        depths = [n["depth"] for n in problem.metadata["needles"]]
        assert depths == sorted(depths) and 0 <= depths[0] and depths[-1] < 1
        others = [line for line in problem.document.split("\n") if not line.startswith("VAR")]
        assert all(line == NOISE for line in others[:-1]) and NOISE.startswith(others[-1])


def test_chains_stand_at_every_depth():
    first, last = zip(
        *(
            [ruler_problem("vt", 0, i, 3000, count_words, ESSAY).metadata["needles"][k]["depth"] for k in (0, 4)]
            for i in range(200)
        ),
        strict=True,
    )
    assert sum(first) / 200 == pytest.approx(1 / 6, abs=0.04)  # least of five uniform draws, standard error 0.01
    assert sum(last) / 200 == pytest.approx(5 / 6, abs=0.04)


@pytest.mark.parametrize(("tokens", "kind"), [(1000, "[a-z]+"), (30_000, "[a-z]+"), (120_000, "[a-z]+-[a-z]+")])
def test_common_words_are_counted_by_reading(tokens, kind):
    for index in range(3):
        problem = ruler_problem("cwe", 0, index, tokens, count_words, ESSAY)
        items = problem.document.split(" ")
        assert items[::2] == [f"{i}." for i in range(1, len(items) // 2 + 1)]
        counts = Counter(items[1::2])
        assert {word for word, _ in counts.most_common(10)} == set(problem.answers) and len(problem.answers) == 10
        assert {counts[word] for word in problem.answers} == {30}
        others = [count for word, count in counts.items() if word not in problem.answers]
        assert set(others) <= {1, 3} and others.count(1) <= 10 and others.count(3) >= 10
        assert all(re.fullmatch(kind, word) for word in counts)
        assert not any(a in b for a in problem.answers for b in problem.answers if a != b)
        assert "10 most common words" in problem.question


def test_no_common_word_is_a_part_of_another_one(monkeypatch):
    words = tuple(f"{start}{end}" for start in ("cart", "ham", "sun", "wind", *WORDS) for end in ("", "er", "ering"))
    monkeypatch.setattr("pipeline.data.documents.ruler.counting.single_words", lambda: words)
    for index in range(20):
        answers = ruler_problem("cwe", 0, index, 700, count_words, ESSAY).answers
        assert len(answers) == 10 and not any(a in b for a in answers for b in answers if a != b)


SHORT = [(tokens, count_words) for tokens in range(46, 90)]
LONGER = [(tokens, count_bytes) for tokens in (300, 350, 500, 1000, 50_000)]


@pytest.mark.parametrize(("tokens", "count"), SHORT + LONGER)
def test_frequent_words_are_counted_by_reading(tokens, count):
    for index in range(3):
        problem = ruler_problem("fwe", 0, index, tokens, count, ESSAY)
        counts = Counter(problem.document.split())
        (dots, most), *frequent = counts.most_common(5)
        assert dots == "..." and most > 2 * frequent[0][1]
        assert Counter(dict(frequent[:3])) == {word: counts[word] for word in problem.answers}
        assert frequent[2][1] > frequent[3][1]
        assert [counts[word] for word in problem.answers] == sorted(
            (counts[word] for word in problem.answers), reverse=True
        )
        assert all(re.fullmatch("[a-z]{6}", word) for word in problem.answers)
        assert sum(not re.fullmatch(r"[a-z]{6}|\.\.\.", word) for word in counts) <= 1  # the last one, cut
        assert "three words" in problem.question
    if tokens == 50_000:  # rank r comes in proportion to 1 / r²
        assert most / frequent[0][1] == pytest.approx(4, rel=0.01) and most / frequent[2][1] == pytest.approx(
            16, rel=0.01
        )


INTRODUCTIONS = {
    "niah": r"The text hides (a|some) special magic \w+\. Remember (it|them) when you come across (it|them)\.",
    "vt": r"The text hides a chain of variable assignments\. Remember them and follow the chain as you read\.",
    "cwe": r"The text is a numbered list of words, .*\. Remember those that come most often\.",
    "fwe": r"The text consists of coded words\. Keep track of how often each of them appears as you read\.",
    "qa": r"Answer the question from the given documents\.",
}


@pytest.mark.parametrize(
    ("task", "pattern"),
    [
        ("niah_single_1", r"What is the special magic number for \S+ mentioned in the provided text\?"),
        ("niah_single_3", r"What is the special magic uuid for \S+ mentioned in the provided text\?"),
        ("niah_multikey_1", r"What is the special magic number for \S+ mentioned in the provided text\?"),
        ("niah_multikey_3", r"What is the special magic uuid for \S+ mentioned in the provided text\?"),
        ("niah_multivalue", r"What are all the special magic numbers for \S+ mentioned in the provided text\?"),
        (
            "niah_multiquery",
            r"What are all the special magic numbers for (\S+, ){3}and \S+ mentioned in the provided text\?",
        ),
        ("vt", r"Find all variables that are assigned the value \d{5} in the text\."),
        ("cwe", r"What are the 10 most common words in the numbered list\?"),
        ("fwe", r"What are the three words that .* most often in the coded text\? Ignore the dots '\.\.\.', .*\."),
        ("qa_1", r"Which seed is \d+ \d+\?"),
        ("qa_2", r"Q \d+\?"),
    ],
)
def test_questions(make, task, pattern):
    """First what to look for, so that a reader of chunks knows it from the first one; then what is asked."""
    problem = make(task)
    introduction = INTRODUCTIONS[task.partition("_")[0]]
    found = re.fullmatch(rf"({introduction}) {pattern}", problem.question)
    assert found, problem.question
    assert problem.question not in problem.document


@pytest.mark.parametrize("task", RULER_TASKS)
def test_a_question_fits_the_agents_budget(make, task):
    """Counted in bytes, of which no tokenizer makes more tokens."""
    limit = AgentSection().problem_tokens
    for index in range(20):
        problem = make(task, index=index)
        assert count_bytes(problem.question) < limit // 2, problem.question


def test_the_errors():
    with pytest.raises(DataError, match="there is no RULER task 'niah'; there are niah_single_1,"):
        ruler_problem("niah", 0, 0, 1000, count_words, ESSAY)
    with pytest.raises(DataError, match="niah_multiquery .* `essay=`"):
        ruler_problem("niah_multiquery", 0, 0, 1000, count_words, RulerSources())
    with pytest.raises(DataError, match="qa_1 needs questions: give a SQuAD JSON file as `questions=`"):
        ruler_problem("qa_1", 0, 0, 1000, count_words, ESSAY)
    with pytest.raises(DataError, match="cwe needs at least 660 tokens .* not 659"):
        ruler_problem("cwe", 0, 0, 659, count_words, ESSAY)
    with pytest.raises(DataError, match="fwe needs at least 46 tokens .* not 45"):  # else ranks 4 and 5 come alike
        ruler_problem("fwe", 0, 0, 45, count_words, ESSAY)
    with pytest.raises(DataError, match=r"vt needs at least 24 tokens .* not 23"):
        ruler_problem("vt", 0, 0, 23, count_words, ESSAY)
