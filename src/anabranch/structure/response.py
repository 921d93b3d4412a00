"""The graph of a recorded response: supervised data in which parallel thinking is written out with tags.

One block is `<Parallel>`, one or more times `<Path>` ... `</Path>`, then `</Parallel>`, newline, `<Summary>` ...
`</Summary>`, with nothing in between. Each path is a segment; `<Parallel>` is the last token before the fork,
`</Parallel>` the first of the join, which goes on to the next `<Parallel>` or the end. A response of b blocks of N
paths has 1 + b(N + 1) segments below its prompt. A response may be cut anywhere: it loses the end of its layout, and a
cut block has no join. Blocks inside a path or a summary, and tags out of order, are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from anabranch.errors import GraphError, explain
from anabranch.records import Bool, Int32, Segment, StreamGraph

Place = Literal["main text", "a block", "a path", "a join", "a summary"]


@dataclass(frozen=True)
class Tags:
    """Token ids of the six tags, and of the newline that stands between `</Parallel>` and `<Summary>`.

    Raises:
        GraphError: two of the ids are the same.
    """

    parallel_open: int
    parallel_close: int
    path_open: int
    path_close: int
    summary_open: int
    summary_close: int
    newline: tuple[int, ...]
    """Usually one token; empty if nothing stands there."""

    def __post_init__(self) -> None:
        names = self.names()
        if len(names) != 6 or not names.keys().isdisjoint(self.newline):
            raise GraphError(explain("Tags", repr(self), "each tag needs an id of its own", "add the tags as tokens"))

    def names(self) -> dict[int, str]:
        """Token id to the text of the tag."""
        return {
            self.parallel_open: "<Parallel>",
            self.parallel_close: "</Parallel>",
            self.path_open: "<Path>",
            self.path_close: "</Path>",
            self.summary_open: "<Summary>",
            self.summary_close: "</Summary>",
        }


_NEXT: Final[dict[tuple[Place, str], Place]] = {
    ("main text", "<Parallel>"): "a block",
    ("a block", "<Path>"): "a path",
    ("a path", "</Path>"): "a block",
    ("a block", "</Parallel>"): "a join",
    ("a join", "<Summary>"): "a summary",
    ("a summary", "</Summary>"): "main text",
}
"""Which tag may stand where, and where it leads."""

_NEED: Final[dict[Place, str]] = {
    "main text": "the only tag outside a block is <Parallel>",
    "a block": "<Parallel> and </Path> are followed at once by <Path>, or after at least one path by </Parallel>",
    "a path": "a path is text up to </Path>, without a block of its own",
    "a join": "</Parallel> is followed at once by the newline and <Summary>",
    "a summary": "a summary is text up to </Summary>, without a block of its own",
}

_RUNTIME: Final = ("<Path>", "</Parallel>", "<Summary>")
"""Tags that the runtime always writes; it writes the newline too."""


@dataclass
class _Piece:
    """Tokens of one segment to be."""

    is_path: bool
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    """False: the runtime always writes this token, the model never does."""


def structured_graph(prompt: Sequence[int], response: Sequence[int], tags: Tags) -> StreamGraph:
    """Paths are siblings that do not see each other; the join has all of them as parents (Unseen).

    Response tokens are trained, but for `<Path>`, `</Parallel>`, newline and `<Summary>`: the runtime writes them.

    Args:
        prompt: token ids; tags in it are ordinary tokens.
        response: token ids in text order.
        tags: ids of the tags.

    Returns:
        The graph; segment 0 is the prompt, the others stand in text order.

    Raises:
        GraphError: no prompt or no response token, or a tag or text where it must not be; the message says where.
    """
    segments = [Segment(_int32(prompt))]
    fork = 0
    paths: list[int] = []
    for index, piece in enumerate(_pieces(response, tags), start=1):
        parents = (fork,) if piece.is_path or not paths else tuple(paths)
        segments.append(Segment(_int32(piece.tokens), parents, np.array(piece.sampled)))
        if piece.is_path:
            paths.append(index)
        else:
            fork, paths = index, []
    return StreamGraph(tuple(segments))


def causal_graph(prompt: Sequence[int], response: Sequence[int], tags: Tags) -> StreamGraph:
    """Every path continues the one before it and the join the last one: a chain, plain causal attention (Seen).

    Every response token is trained, because plain decoding must write the tags itself. Arguments, segments and errors
    as in `structured_graph`.
    """
    segments = [Segment(_int32(prompt))]
    for index, piece in enumerate(_pieces(response, tags), start=1):
        trained: Bool = np.ones(len(piece.tokens), dtype=np.bool_)
        segments.append(Segment(_int32(piece.tokens), (index - 1,), trained))
    return StreamGraph(tuple(segments))


def _int32(tokens: Sequence[int]) -> Int32:
    return np.array(tokens, dtype=np.int32)


def _pieces(response: Sequence[int], tags: Tags) -> list[_Piece]:
    """The response cut before every `<Path>` and `</Parallel>`: main text, paths, joins."""
    if len(response) == 0:
        raise GraphError(explain("response", "no token", "there is nothing to learn from", "leave the example out"))
    names = tags.names()
    pieces = [_Piece(is_path=False)]
    place: Place = "main text"
    newline: tuple[int, ...] = ()  # what is still to come of it before <Summary>
    for index, token in enumerate(int(token) for token in response):
        tag = names.get(token)
        in_newline = tag is None and place == "a join" and newline[:1] == (token,)
        if tag is None:
            fits = in_newline or place not in ("a block", "a join")
        else:
            no_path = tag == "</Parallel>" and not pieces[-1].is_path
            fits = (place, tag) in _NEXT and not no_path and not newline
        if not fits:
            found = tag or f"text (id {token})"
            raise GraphError(
                explain(f"response token {index}", f"{found} in {place}", _NEED[place], "drop or rewrite the example")
            )
        if in_newline:
            newline = newline[1:]
        if tag is not None:
            place = _NEXT[place, tag]
            newline = tags.newline if place == "a join" else ()
        if tag in ("<Path>", "</Parallel>"):
            pieces.append(_Piece(is_path=tag == "<Path>"))
        pieces[-1].tokens.append(token)
        pieces[-1].sampled.append(not in_newline and tag not in _RUNTIME)
    return pieces
