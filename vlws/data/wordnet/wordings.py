"""How an intent is put into words: a grammar of instructions, whose phrases train, dev and test do not share.

Written out by hand where the papers ask a large language model; `instructions.jsonl` of a BEIR folder takes such texts.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product

WORDINGS: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = {
    "frame": {
        "": {
            "train": (
                "Find {}.",
                "Retrieve {}.",
                "Search for {}.",
                "I am looking for {}.",
                "Which are {}?",
                "Given a word, return {}.",
                "List {}.",
                "Your task is to fetch {}.",
                "Get me {}, please.",
                "Only {} are wanted.",
            ),
            "dev": ("Please look up {}.", "What I need are {}."),
            "test": ("Show me {}.", "Give me {}.", "The user wants to see {}."),
        }
    },
    "link": {
        "": {
            "train": (
                "related to the query",
                "close to this word",
                "connected with it",
                "near the term",
                "that have to do with the question",
                "",
            ),
            "dev": ("linked to the given word", "that are about it"),
            "test": ("associated with the input", "that go with the given text"),
        }
    },
    "form": {
        "gloss": {
            "train": (
                "definitions",
                "dictionary definitions",
                "explanations of the meaning",
                "descriptions",
                "texts that tell what the word means",
                "dictionary entries",
                "sentences that define",
                "meanings, written out,",
            ),
            "dev": ("short explanations", "meanings in one sentence"),
            "test": ("explanations", "sentences that say what is meant"),
        },
        "names": {
            "train": (
                "names",
                "lists of names",
                "words",
                "terms",
                "single words",
                "the bare words, without explanation,",
                "synonyms",
                "vocabulary",
            ),
            "dev": ("labels", "lists of synonyms"),
            "test": ("other words", "alternative names"),
        },
        "example": {
            "train": (
                "example sentences",
                "examples of use",
                "sample phrases",
                "usage examples",
                "sentences in which the word is used",
                "phrases from texts",
                "short pieces of speech",
                "instances of usage",
            ),
            "dev": ("sentences as examples", "phrases in context"),
            "test": ("quotations", "sentences that show how words are used"),
        },
    },
    "category": {
        "act": {
            "train": (
                "actions",
                "activities",
                "actions and events",
                "things that people do",
                "behaviour",
                "processes",
                "events that take place",
                "what somebody does, as a noun",
            ),
            "dev": ("acts", "what happens"),
            "test": ("things that happen", "kinds of activity"),
        },
        "living": {
            "train": (
                "animals and plants",
                "living things",
                "organisms",
                "creatures",
                "beings such as birds, fish or trees",
                "wildlife",
                "animals",
                "plants",
            ),
            "dev": ("life forms", "wild animals, trees and flowers"),
            "test": ("animal and plant species", "things that live and grow"),
        },
        "artifact": {
            "train": (
                "objects made by people",
                "artifacts",
                "tools and buildings",
                "man-made things",
                "machines, clothes and furniture",
                "instruments",
                "things that were built",
                "physical objects that one can use",
            ),
            "dev": ("manufactured items", "equipment"),
            "test": ("devices, vehicles and houses", "products that people make"),
        },
        "quality": {
            "train": (
                "qualities",
                "properties",
                "states and feelings",
                "attributes",
                "the state that something is in",
                "features",
                "moods and feelings",
                "nouns that end in -ness",
            ),
            "dev": ("characteristics", "conditions"),
            "test": ("character traits and emotions", "states of body and mind"),
        },
        "idea": {
            "train": (
                "ideas",
                "concepts",
                "thoughts and messages",
                "things that are known or said",
                "statements and signs",
                "theories",
                "what is in the mind",
                "texts and language",
            ),
            "dev": ("beliefs and opinions", "knowledge and language"),
            "test": ("abstract ideas", "information and communication"),
        },
        "place": {
            "train": (
                "places",
                "locations",
                "regions",
                "towns and countries",
                "where something is",
                "parts of the earth",
                "cities",
                "land",
            ),
            "dev": ("areas", "points on a map"),
            "test": ("geographic areas", "countries and districts"),
        },
        "person": {
            "train": (
                "people",
                "persons",
                "kinds of human beings",
                "roles that someone has",
                "humans",
                "workers, relatives and leaders",
                "someone who does something",
                "members of society",
            ),
            "dev": ("individuals", "human roles"),
            "test": ("men and women", "professions and family members"),
        },
        "verb": {
            "train": (
                "verbs",
                "verbs that say what happens",
                "words for doing something",
                "verbal expressions",
                "to do something",
                "what one does, as a verb",
                "verbs of motion, change or speech",
                "verbs in their basic form",
            ),
            "dev": ("words for actions, as verbs", "what one can do, as a verb"),
            "test": ("verbs of any kind", "words such as run or think"),
        },
        "adjective": {
            "train": (
                "adjectives",
                "describing words",
                "words that say how something is",
                "modifiers of nouns",
                "adjectives that describe",
                "how a thing may be",
                "words such as big or red",
                "adjectives of all kinds",
            ),
            "dev": ("adjective terms", "what describes a noun"),
            "test": ("words that describe a noun", "words such as old or happy"),
        },
    },
}


@cache
def wordings(category: str, form: str, split: str) -> tuple[str, ...]:
    """All instructions for a category and a form in a split's wording: "train", "dev" or "test".

    >>> wordings("verb", "gloss", "train")[0], len(wordings("verb", "gloss", "train"))
    ('Find definitions for verbs related to the query.', 3840)
    """
    slots = (
        WORDINGS["frame"][""][split],
        WORDINGS["form"][form][split],
        WORDINGS["category"][category][split],
        WORDINGS["link"][""][split],
    )
    return tuple(frame.format(f"{form} for {name} {link}".strip()) for frame, form, name, link in product(*slots))
