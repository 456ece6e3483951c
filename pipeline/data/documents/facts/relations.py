"""What can be said about made-up people and things: how a fact is stated and how it is asked for.

A chain of two facts leads over a person: a bridge says who the keeper (owner, maker, …) of a thing is, and the question
then speaks of "the keeper of the amber falcon" instead of the person's name.
"""

import random
from dataclasses import dataclass

from pipeline.data.documents.ruler.words import word_list

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
    """

    name: str
    subject: str
    value: str
    statements: tuple[str, ...]
    question: str
    role: str = ""


RELATIONS = (
    # Bridges: a thing's person.
    Relation(
        "keeper",
        THING,
        PERSON,
        ("The keeper of {s} is {v}.", "{v} has become the keeper of {s}."),
        "Who is the keeper of {s}?",
        "the keeper of {s}",
    ),
    Relation(
        "owner",
        THING,
        PERSON,
        ("The owner of {s} is {v}.", "It is {v} who now owns {s}."),
        "Who is the owner of {s}?",
        "the owner of {s}",
    ),
    Relation(
        "maker",
        THING,
        PERSON,
        ("The maker of {s} was {v}.", "It was {v} who made {s}."),
        "Who made {s}?",
        "the maker of {s}",
    ),
    Relation("finder", THING, PERSON, ("The finder of {s} was {v}.",), "Who found {s}?", "the finder of {s}"),
    Relation("thief", THING, PERSON, ("The thief of {s} was {v}.",), "Who stole {s}?", "the thief of {s}"),
    Relation("buyer", THING, PERSON, ("The buyer of {s} was {v}.",), "Who bought {s}?", "the buyer of {s}"),
    # A thing's other facts.
    Relation("price", THING, "amount", ("The price of {s} was {v} pounds.",), "How many pounds was the price of {s}?"),
    Relation("weight", THING, "amount", ("The weight of {s} is {v} ounces.",), "How many ounces is the weight of {s}?"),
    Relation("number", THING, "number", ("The number of {s} is {v}.",), "What is the number of {s}?"),
    Relation("hiding place", THING, "town", ("The hiding place of {s} is in {v}.",), "In which town is {s} hidden?"),
    Relation("discovery", THING, "year", ("The year in which {s} was found is {v}.",), "In which year was {s} found?"),
    Relation("shipping", THING, "day", ("The day on which {s} was shipped is {v}.",), "On which day was {s} shipped?"),
    # A person's facts.
    Relation("birthplace", PERSON, "town", ("The birthplace of {s} is {v}.",), "In which town was {s} born?"),
    Relation(
        "home", PERSON, "town", ("The home of {s} is in {v}.", "{s} lives in {v}."), "In which town does {s} live?"
    ),
    Relation(
        "trade",
        PERSON,
        "trade",
        ("The trade of {s} is that of a {v}.", "{s} works as a {v}."),
        "What is the trade of {s}?",
    ),
    Relation("birth", PERSON, "year", ("The year in which {s} was born is {v}.",), "In which year was {s} born?"),
    Relation("wedding", PERSON, "day", ("The wedding of {s} was on {v}.",), "On which day was the wedding of {s}?"),
    Relation("departure", PERSON, "day", ("The departure of {s} was on {v}.",), "On which day did {s} depart?"),
    Relation(
        "age", PERSON, "age", ("The age of {s} is {v} years.", "{s} is {v} years old."), "How many years old is {s}?"
    ),
    Relation("debt", PERSON, "amount", ("The debt of {s} is {v} pounds.",), "How many pounds is the debt of {s}?"),
    Relation("wage", PERSON, "amount", ("The wage of {s} is {v} pounds.",), "How many pounds is the wage of {s}?"),
    Relation("ticket", PERSON, "number", ("The ticket number of {s} is {v}.",), "Which number has the ticket of {s}?"),
    Relation("room", PERSON, "room", ("The room of {s} is room {v}.",), "Which room is the room of {s}?"),
    Relation("password", PERSON, "word", ("The password of {s} is {v}.",), "What is the password of {s}?"),
)
# Relations of which no training question and no demonstration speaks.
HELD_OUT = ("owner", "finder", "weight", "discovery", "birthplace", "wage", "departure")

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
    "word": lambda rng: rng.choice(word_list("noun")),
    "year": lambda rng: str(rng.randint(1701, 1899)),
    "day": lambda rng: f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
    "age": lambda rng: str(rng.randint(20, 90)),
    "room": lambda rng: str(rng.randint(100, 999)),
    "amount": lambda rng: str(rng.randint(100, 9999)),
    "number": lambda rng: str(rng.randint(1000, 9999)),
}


def draw_subject(relation: Relation, rng: random.Random) -> str:
    """A subject of a relation, as it stands in a sentence."""
    return rng.choice(PEOPLE) if relation.subject == PERSON else f"the {rng.choice(MATERIALS)} {rng.choice(THINGS)}"


def draw_value(relation: Relation, rng: random.Random) -> str:
    return VALUES[relation.value](rng)


def relations_of(forms: str) -> tuple[Relation, ...]:
    """The relations of a name in `FORMS`."""
    return tuple(
        relation for relation in RELATIONS if forms == "all" or (relation.name in HELD_OUT) == (forms == "held_out")
    )


FORMS = ("trained", "held_out", "all")
