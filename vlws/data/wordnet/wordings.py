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
            "test": ("Show me {}.", "Give back {}.", "The user wants to see {}."),
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
            "test": ("that belong with the input", "associated with what was typed"),
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
                "meanings, spelt out,",
            ),
            "dev": ("glosses", "short explanations"),
            "test": ("statements of what is meant", "paraphrases"),
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
            "test": ("designations", "headwords"),
        },
        "example": {
            "train": (
                "example sentences",
                "examples of use",
                "sample phrases",
                "usage examples",
                "sentences in which the word is used",
                "phrases from texts",
                "snippets of speech",
                "instances of usage",
            ),
            "dev": ("illustrating sentences", "phrases as they are used"),
            "test": ("quotations", "utterances in context"),
        },
    },
    "category": {
        "act": {
            "train": (
                "actions",
                "activities",
                "deeds and events",
                "things that people do",
                "behaviour",
                "processes",
                "events that take place",
                "what somebody does, as a noun",
            ),
            "dev": ("acts", "happenings"),
            "test": ("doings", "undertakings and occurrences"),
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
            "dev": ("beasts and herbs", "life forms"),
            "test": ("fauna and flora", "biological species"),
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
            "test": ("devices and constructions", "products of human work"),
        },
        "quality": {
            "train": (
                "qualities",
                "properties",
                "states and feelings",
                "attributes",
                "the state that something is in",
                "features",
                "moods and sensations",
                "nouns that end in -ness",
            ),
            "dev": ("characteristics", "conditions"),
            "test": ("traits", "ways of being and emotions"),
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
            "dev": ("notions", "knowledge and language"),
            "test": ("mental contents", "cognition and communication"),
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
            "test": ("geographical sites", "territories and cities"),
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
            "dev": ("individuals", "who somebody is"),
            "test": ("men and women", "professions and characters"),
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
                "doing words",
            ),
            "dev": ("predicates", "what one can do, as a verb"),
            "test": ("the part of speech that takes a subject", "infinitives"),
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
                "adjective senses",
            ),
            "dev": ("adjectival words", "what describes a noun"),
            "test": ("epithets", "qualifiers"),
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
