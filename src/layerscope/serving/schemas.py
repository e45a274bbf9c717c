"""What requests and answers hold: the models that check the one and describe the other."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from layerscope.analysis.quotability import Status
from layerscope.looking.options import LookOptions
from layerscope.serving.limits import (
    LONGEST_NAME,
    LONGEST_WAIT_S,
    LONGEST_WORD,
    MOST_CHARACTERS,
    MOST_TOP,
    MOST_WORDS,
)


class Asked(BaseModel):
    """What a client sends: nothing but these fields, and each of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Told(BaseModel):
    """What a client is sent."""

    model_config = ConfigDict(extra="forbid")


Word = Annotated[str, Field(max_length=LONGEST_WORD)]
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]


class LookAsked(Asked):
    """A text to look at, and how; the fields mean what they mean for `layerscope.look`."""

    model: Word = Field(description="A name that GET /api/models gives.")
    text: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)] = Field(
        description="What the model continues."
    )
    chat: bool = Field(False, description="Take the text as a user's message, in the model's own chat template.")
    system: Text | None = Field(None, description="What a system message says in front of it; belongs to a chat.")
    answer: Word | None = Field(None, description="What the model should say; its rank is followed.")
    track: Annotated[list[Word], Field(max_length=MOST_WORDS)] | Annotated[str, Field(max_length=4000)] | None = Field(
        None, description="Further words to follow: a list, or a text that is split at commas."
    )
    lenses: Annotated[list[Word], Field(min_length=1, max_length=16)] | Word = Field(
        "logit", description="Lenses, in a list or comma-separated; a grid for each."
    )
    layers: Word | None = Field(None, description="Which layers, as in 0,4,8-; null for all.")
    positions: Word | None = Field(
        None, description="Which tokens' places: last, all, or counted from 0, as in 5-9,12; null for the last 8."
    )
    top: Annotated[int, Field(ge=1, le=MOST_TOP)] = Field(
        LookOptions.top, description="How many tokens are listed at every layer and position."
    )
    session: Name | None = Field(None, description="Any name of the client's own, which its later looks can give too.")
    supersede: bool = Field(False, description="Cancel the unfinished looks of the same session: somebody is typing.")


class ResultQuery(Asked):
    """In which form a result is told."""

    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)

    result: Literal["look", "page", "none"] = Field(
        "look",
        description="In which form the result is part of the answer: look, as `Look.to_dict()` has it, page, as "
        "GET /api/looks/{id}/page has it, or not at all.",
    )


class LookQuery(ResultQuery):
    """How a look is answered."""

    wait: Annotated[float, Field(ge=0, le=LONGEST_WAIT_S)] = Field(
        0, description="Seconds to wait for the result; the look is cancelled if the client goes away meanwhile."
    )


class DifferenceAsked(Asked):
    """Two looks that are to be set against one another."""

    a: Name = Field(description="The id of a look.")
    b: Name = Field(description="The id of the other.")


class Nothing(Asked):
    """An empty object."""


class Error(Told):
    """Why a request was refused, or could not be carried out."""

    error: str = Field(description="One sentence: what was expected, what came, what to do.")


class ModelTold(Told):
    """A model that is served."""

    name: str
    n_layers: int = Field(description="Number of blocks; layers go from 0 to it.")
    d_vocab: int = Field(description="Number of logits.")
    lenses: list[str] = Field(description="Through which it can be looked at, fitted ones included.")
    resident: bool = Field(description="Whether it is open, so that a look begins at once.")
    chat: bool = Field(description="Whether its tokenizer has a chat template.")


class LimitsTold(Told):
    """What one look may ask for at most."""

    characters: int
    tokens: int
    tracked: int
    top: int


class Models(Told):
    """The models that are served, and what looks at them may ask for."""

    models: list[ModelTold]
    limits: LimitsTold


class ProgressTold(Told):
    """How far a running job is."""

    stage: Literal["opening", "blocks", "vocabulary"]
    done: int
    total: int


class JobTold(Told):
    """Where a job is."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    position_in_queue: int | None = Field(description="How many jobs are before it; null unless it is queued.")
    progress: ProgressTold | None = Field(description="Null unless it runs.")
    error: str | None = Field(description="Of a job that failed or was cancelled: why, in one sentence.")
    seconds: float | None = Field(description="How long it ran; null until it has ended.")


class Token(Told):
    """A token of the text."""

    id: int
    token: str


class Listed(Told):
    """A token among the most likely ones."""

    id: int
    token: str
    p: float | None = Field(description="Probability; null where it cannot be trusted.")


class Identity(Told):
    """Whether the last layer, decoded, is the model's own output."""

    ok: bool
    kl_bits: float | None
    tolerance_bits: float
    note: str


class Output(Told):
    """What the model itself says next."""

    entropy_bits: float
    top: list[Listed]


class Cell(Told):
    """One place of the grid."""

    lens: str
    layer: int
    position: int
    entropy_bits: float | None
    kl_to_final_bits: float | None
    top: list[Listed] = Field(description="Most likely first; empty where the row is not finite.")


class RankAt(Told):
    """Where a word stands at one place."""

    lens: str
    layer: int
    position: int
    rank: int | None
    p: float | None


class TrackedWord(Told):
    """A word that is followed by its first token."""

    word: str
    id: int | None
    token: str | None = Field(description="The token that is followed; null where the word has none after this text.")
    n_pieces: int
    reason: str | None = Field(description="Why it cannot be followed; null where it can.")
    at: list[RankAt]


class LookTold(Told):
    """A look, as `Look.to_dict()` gives it."""

    model: str
    text: str
    chat: dict[str, Any] | None
    bos: str
    tokens: list[Token]
    lenses: list[str]
    n_layers: int
    layers: list[int]
    positions: list[int]
    identity: Identity
    output: Output | None = Field(description="Null where it is not finite.")
    grid: list[Cell]
    tracked: list[TrackedWord]


class VocabularyTold(Told):
    """Every token that the page's lists name, once; its place is counted from 1."""

    texts: list[str]
    ids: list[int]


class BlockTold(Told):
    """Where the numbers of a lens are among the blocks, and their shape."""

    id: str
    positions: list[int]
    top_k: int


class PromptTold(Told):
    """The text as one of a run's prompts."""

    fact_index: int | None
    prompt_id: str
    variant: str
    fact: str = Field(description="The text as it was given.")
    text: str = Field(description="What was tokenised: with chat, as the template writes it.")
    tokens: dict[str, str] = Field(description="By position.")
    last: int | None = Field(description="The last position; null where it was not read.")
    answers: list[str]
    answer_tokens: list[int] = Field(description="Places in the vocabulary.")
    judged_token: int | None = Field(description="Place of the token that the rank is of; null where no list has it.")
    milestones: dict[str, dict[str, int]] = Field(
        description="By lens; rank_1: the first layer read at which the answer is on top at the last position."
    )
    blocks: dict[str, BlockTold] = Field(description="By lens.")


class RunTold(Told):
    """The look as one of a page's runs."""

    label: str
    model: str
    n_layers: int
    d_vocab: int
    headline: str
    lenses: list[str]
    every: str
    ranks: bool
    probabilities: bool
    suppressed: bool
    statuses: dict[str, list[Status | None]] = Field(
        description="By lens and layer, what probabilities are: model, decoded or withheld; null where not read."
    )
    carried: None = Field(description="Null: patches take two texts, and a look is of one.")
    kl_bits: float = Field(description="Where the colour scale of divergences ends.")
    missing: str | None
    prompts: list[PromptTold] = Field(min_length=1, max_length=1)


class TrackedOnPage(Told):
    """A word that is followed: by lens, layers 0 to n_layers by positions."""

    word: str
    token: str | None
    id: int | None
    token_place: int | None = Field(description="Place of its token in the vocabulary; null where no list names it.")
    n_pieces: int
    reason: str | None
    rank: dict[str, list[list[int | None]]] = Field(description="From 1; null where not read or not finite.")
    p: dict[str, list[list[float | None]]]


class PageTold(Told):
    """A look as the components of the page take it."""

    vocabulary: VocabularyTold
    run: RunTold
    blocks: dict[str, str] = Field(
        description="By id: base64 of a zlib stream of typed arrays, laid out as by view.page.blocks.Block."
    )
    layers: list[int]
    positions: list[int]
    tracked: list[TrackedOnPage] = Field(description="The answer first, where one was given.")
    output: Output | None
    identity: Identity
    bos: str
    chat: dict[str, Any] | None
    seconds: float


class LookJobTold(JobTold):
    """A look that was asked for, with its result if that is there and wanted."""

    model: str
    asked: dict[str, Any] = Field(description="What was asked for, as it was sent.")
    look: LookTold | None = None
    page: PageTold | None = None


class LookRefused(RootModel[Error | LookJobTold]):
    """Why there is no look: the request was refused, or the look that was waited for failed or was cancelled."""


class Code(Told):
    """What repeats a look."""

    python: str = Field(description="A program.")
    shell: str | None = Field(description="A command; null where a shell cannot pass what was asked for.")
    note: str | None = Field(description="Why there is no command, or from where to run it.")


class LayerDifferenceTold(Told):
    """One layer at the last tokens of two looks."""

    layer: int
    top_a: str | None
    top_b: str | None
    js_bits: float | None = Field(description="Jensen-Shannon divergence, from 0 to 1.")
    ranks: dict[str, list[int | None]] = Field(description="By word, in a and in b.")


class DifferenceTold(Told):
    """Two looks, layer by layer under the first lens of each."""

    lenses: list[str] = Field(description="Of a and of b.")
    reason: str | None = Field(description="Why layers or divergences are missing; null where they are there.")
    layers: list[LayerDifferenceTold]
