"""What can be said about made-up people and things: how a fact is stated and how it is asked for.

A chain of two facts leads over a person: a bridge says who the keeper (owner, maker, …) of a thing is, and the question
then speaks of "the keeper of the amber falcon" instead of the person's name.
"""

import functools
import random
from dataclasses import dataclass

from pipeline.data.documents.ruler.words import word_pair

PERSON, THING = "person", "thing"


@dataclass(frozen=True)
class Relation:
    """One kind of fact. `{s}` is its subject, `{v}` its value.

    Attributes:
        name: a name for reports.
        subject: `PERSON` or `THING`.
        value: the kind of its value, a key of `VALUES`.
        statements: the ways to state it; each is a sentence.
        question: the way to ask for the value.
        role: for a bridge, whose value is a person: how a question speaks of that person.
        answers: the right answers.
    """

    name: str
    subject: str
    value: str
    statements: tuple[str, ...]
    question: str
    role: str = ""
    answers: tuple[str, ...] = ("{v}",)


def _bridge(name: str, statements: tuple[str, ...], question: str) -> Relation:
    return Relation(name, THING, PERSON, statements, question, f"the {name} of {{s}}")


RELATIONS = (
    # Bridges: a thing's person.
    _bridge("keeper", ("The keeper of {s} is {v}.", "{v} has become the keeper of {s}."), "Who is the keeper of {s}?"),
    _bridge("owner", ("{s} belongs to {v}.", "It is {v} who owns {s}."), "Who is the owner of {s}?"),
    _bridge("maker", ("{s} was made by {v}.", "It was {v} who made {s}."), "Who made {s}?"),
    _bridge("finder", ("{s} was found by {v}.", "It was {v} who found {s}."), "Who found {s}?"),
    _bridge("thief", ("{s} was stolen by {v}.", "The thief of {s} was {v}."), "Who stole {s}?"),
    _bridge("buyer", ("{s} was bought by {v}.", "The buyer of {s} was {v}."), "Who bought {s}?"),
    # A thing's other facts.
    Relation("price", THING, "amount", ("{s} was sold for {v} pounds.",), "For how many pounds was {s} sold?"),
    Relation("weight", THING, "amount", ("{s} weighs {v} ounces.",), "How many ounces does {s} weigh?"),
    Relation(
        "catalogue number",
        THING,
        "number",
        ("The catalogue number of {s} is {v}.", "{s} has the catalogue number {v}."),
        "What is the catalogue number of {s}?",
    ),
    Relation("hiding place", THING, "town", ("{s} is hidden in {v}.",), "In which town is {s} hidden?"),
    Relation(
        "discovery",
        THING,
        "year",
        ("{s} was discovered in the year {v}.",),
        "In which year was {s} discovered?",
    ),
    Relation("shipping", THING, "day", ("{s} was shipped on {v}.",), "On which day was {s} shipped?"),
    # A person's facts.
    Relation("birthplace", PERSON, "town", ("{s} was born in the town of {v}.",), "In which town was {s} born?"),
    Relation(
        "home",
        PERSON,
        "town",
        ("{s} lives in {v}.", "The home of {s} is in {v}."),
        "In which town does {s} live?",
    ),
    Relation(
        "trade",
        PERSON,
        "trade",
        ("{s} works as a {v}.", "{s} is a {v} by trade."),
        "What is the trade of {s}?",
        answers=("{v}", "a {v}"),
    ),
    Relation("birth", PERSON, "year", ("{s} was born in the year {v}.",), "In which year was {s} born?"),
    Relation(
        "wedding",
        PERSON,
        "day",
        ("{s} was married on {v}.", "The wedding of {s} was on {v}."),
        "On which day was {s} married?",
    ),
    Relation("departure", PERSON, "day", ("{s} departed on {v}.",), "On which day did {s} depart?"),
    Relation(
        "age",
        PERSON,
        "age",
        ("{s} is {v} years old.", "The age of {s} is {v} years."),
        "How old is {s}?",
        answers=("{v}", "{v} years", "{v} years old"),
    ),
    Relation(
        "debt",
        PERSON,
        "amount",
        ("{s} owes the bank {v} pounds.", "The debt of {s} is {v} pounds."),
        "How many pounds does {s} owe the bank?",
    ),
    Relation("wage", PERSON, "amount", ("{s} earns {v} pounds a year.",), "How many pounds does {s} earn a year?"),
    Relation(
        "ticket",
        PERSON,
        "number",
        ("The ticket number of {s} is {v}.", "{s} holds the ticket with the number {v}."),
        "What is the ticket number of {s}?",
    ),
    Relation(
        "room",
        PERSON,
        "room",
        ("{s} sleeps in room {v}.", "The room of {s} has the number {v}."),
        "In which room does {s} sleep?",
        answers=("{v}", "room {v}"),
    ),
    Relation(
        "password",
        PERSON,
        "word",
        ("The password of {s} is {v}.", "{s} uses the password {v}."),
        "What is the password of {s}?",
    ),
)
# Relations of which no training question and no demonstration speaks.
HELD_OUT = ("owner", "finder", "weight", "discovery", "birthplace", "wage", "departure")
FORMS = ("trained", "held_out", "all")

PEOPLE = tuple(
    "Ada Anton Astrid Boris Bruno Carla Cedric Dalia Dario Edna Elsa Emil Enzo Farah Felix Greta Gustav Hana Ilse "
    "Igor Ingrid Ivo Jana Joris Kamal Karin Lars Leila Lorenzo Luca Magda Marco Mina Mirko Nadia Nils Olga Omar "
    "Otto Paula Pavel Petra Raul Rosa Ruben Sanna Selma Silas Sofia Stefan Tamar Theo Ursula Vera Viktor Wanda "
    "Yusuf Zelda".split()
)
TOWNS = tuple(
    "Aarhus Bergen Bilbao Cadiz Cork Delft Dresden Florence Genoa Ghent Graz Kiel Krakow Lisbon Lund Lyon Malaga "
    "Milan Nantes Odessa Oslo Padua Porto Quito Riga Rouen Seville Siena Split Tartu Trieste Turin Utrecht Vigo "
    "Zagreb".split()
)
TRADES = tuple(
    "baker barber brewer carpenter cooper dyer farmer fisher gardener glazier hatter joiner mason miller painter "
    "potter printer roofer sailor shepherd tailor tanner teacher weaver".split()
)
MONTHS = tuple("January February March April May June July August September October November December".split())
MATERIALS = tuple(
    "amber brass bronze copper coral cotton crystal ivory leather linen marble paper pewter purple scarlet silken "
    "silver steel striped velvet wooden".split()
)
THINGS = tuple(
    "anchor bell book bowl bracelet candle clock coin cup drum falcon fan flute globe hammer harp helmet kettle "
    "key lamp lantern mask mirror needle violin ring saddle shield spoon sword".split()
)

VALUES = {
    PERSON: lambda rng: rng.choice(PEOPLE),
    "town": lambda rng: rng.choice(TOWNS),
    "trade": lambda rng: rng.choice(TRADES),
    "word": word_pair,
    "year": lambda rng: str(rng.randint(1701, 1899)),
    "day": lambda rng: f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
    "age": lambda rng: str(rng.randint(30, 90)),  # no day of a month
    "room": lambda rng: str(rng.randint(100, 999)),
    "amount": lambda rng: str(rng.randint(100, 9999)),
    "number": lambda rng: str(rng.randint(1000, 9999)),
}


def draw_value(relation: Relation, rng: random.Random) -> str:
    return VALUES[relation.value](rng)


@functools.cache
def subjects_of(relation: Relation) -> tuple[str, ...]:
    """All subjects of a relation, as they stand in a sentence."""
    if relation.subject == PERSON:
        return PEOPLE
    return tuple(f"the {material} {thing}" for material in MATERIALS for thing in THINGS)


def relations_of(forms: str) -> tuple[Relation, ...]:
    """The relations of a name in `FORMS`."""
    held_out = forms == "held_out"
    return tuple(relation for relation in RELATIONS if forms == "all" or (relation.name in HELD_OUT) == held_out)
