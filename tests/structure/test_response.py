"""Responses with recorded forks: A1, A3, A12 and A15 from flat tokens, cuts, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import GraphError
from anabranch.records import StreamGraph
from anabranch.structure.layout import allowed, lay_out, targets
from anabranch.structure.response import Tags, causal_graph, structured_graph

TAGS = Tags(parallel_open=1, parallel_close=2, path_open=3, path_close=4, summary_open=5, summary_close=6, newline=(7,))
ID = {"<Parallel>": 1, "</Parallel>": 2, "<Path>": 3, "</Path>": 4, "<Summary>": 5, "</Summary>": 6, "\\n": 7}
BLOCK = "<Parallel> <Path> a </Path> <Path> b b </Path> </Parallel> \\n <Summary> s </Summary>"
A1 = f"m {BLOCK} m"
A3 = (
    "u <Parallel> <Path> a </Path> <Path> b b b </Path> </Parallel> \\n <Summary> s </Summary> "
    "v <Parallel> <Path> c c </Path> <Path> d </Path> </Parallel> \\n <Summary> t </Summary> e"
)


def ids(text: str) -> list[int]:
    """One token a word; words that are no tags get ids from 100 on."""
    return [ID[word] if word in ID else 100 + ord(word) for word in text.split()]


def parents(graph: StreamGraph) -> list[tuple[int, ...]]:
    return [segment.parents for segment in graph.segments]


def words(graph: StreamGraph) -> list[str]:
    names = {value: key for key, value in ID.items()}
    return [" ".join(names.get(int(t)) or chr(int(t) - 100) for t in segment.tokens) for segment in graph.segments]


def test_A1_from_the_tokens_of_a_response():
    graph = structured_graph(ids("q q"), ids(A1), TAGS)
    assert words(graph) == [
        "q q",
        "m <Parallel>",
        "<Path> a </Path>",
        "<Path> b b </Path>",
        "</Parallel> \\n <Summary> s </Summary> m",
    ]
    assert parents(graph) == [(), (0,), (1,), (1,), (2, 3)]
    layout = lay_out(graph)
    assert layout.tokens_T.tolist() == ids(f"q q {A1}")
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert allowed(layout).sum() == 141


def test_A2_three_paths_from_the_tokens_of_a_response():
    text = (
        "m <Parallel> <Path> a </Path> <Path> b b b </Path> <Path> c c </Path> </Parallel> \\n"  # cut after one token
    )
    layout = lay_out(structured_graph(ids("q " * 9), ids(text), TAGS))
    assert layout.positions_T[[11, 14, 19]].tolist() == [11, 11, 11]
    assert layout.positions_T[[13, 18, 22, 23, 24]].tolist() == [13, 15, 14, 16, 17]
    assert allowed(layout).sum() == 278


def test_A3_the_main_text_between_two_blocks_belongs_to_the_first_join():
    graph = structured_graph(ids("u"), ids(A3)[1:], TAGS)
    assert parents(graph) == [(), (0,), (1,), (1,), (2, 3), (4,), (4,), (5, 6)]  # 1 + 2 * (2 + 1) below the prompt
    assert words(graph)[4] == "</Parallel> \\n <Summary> s </Summary> v <Parallel>"
    layout = lay_out(graph)
    expected = [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, *range(7, 14), 14, 15, 16, 17, 14, 15, 16, *range(18, 24)]
    assert layout.positions_T.tolist() == expected
    assert allowed(layout).sum() == 438


def test_A12_structured_training_leaves_out_what_the_runtime_writes():
    layout = lay_out(structured_graph(ids("q q"), ids(A1), TAGS))
    assert targets(layout).tolist() == [2, 3, 5, 6, 8, 9, 10, 14, 15, 16]


def test_A12_a_chain_trains_every_token_of_the_response():
    layout = lay_out(causal_graph(ids("q q"), ids(A1), TAGS))
    assert targets(layout).tolist() == list(range(2, 17))  # 15 targets
    assert layout.source_T[targets(layout)].tolist() == list(range(1, 16))


def test_A12_a_plain_response_is_predicted_from_the_prompt_on():
    layout = lay_out(structured_graph(ids("q q q q q"), ids("a b c d"), TAGS))
    assert layout.source_T[targets(layout)].tolist() == [4, 5, 6, 7]
    assert targets(layout).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("build", [structured_graph, causal_graph])
@pytest.mark.parametrize(
    "prompt", [f"q {BLOCK} q", "q <Parallel> <Path>", "</Path> </Summary> <Path> \\n", "<Parallel>"]
)
def test_A15_tags_in_the_prompt_are_ordinary_tokens(build, prompt):
    size = len(prompt.split())
    graph = build(ids(prompt), ids(A1), TAGS)
    layout = lay_out(graph)
    assert layout.positions_T[:size].tolist() == list(range(size))
    assert np.array_equal(allowed(layout)[:size, :size], np.tri(size, dtype=bool))
    assert not graph.segments[0].trained.any()
    assert parents(graph) == parents(build(ids("q"), ids(A1), TAGS))


def test_a_chain_is_plain_causal_text_in_the_same_segments():
    graph = causal_graph(ids("q q"), ids(A3), TAGS)
    assert words(graph) == words(structured_graph(ids("q q"), ids(A3), TAGS))
    layout = lay_out(graph)
    assert np.array_equal(allowed(layout), np.tri(len(layout), dtype=bool))
    assert layout.positions_T.tolist() == list(range(len(layout)))


def test_first_tokens_of_paths_are_read_from_the_fork_when_structured_and_from_the_text_before_in_a_chain():
    structured, chain = (lay_out(build(ids("q q"), ids(A1), TAGS)) for build in (structured_graph, causal_graph))
    assert structured.source_T[[4, 7, 11]].tolist() == [3, 3, -1]
    assert chain.source_T[[4, 7, 11]].tolist() == [3, 6, 10]


@pytest.mark.parametrize("build", [structured_graph, causal_graph])
@pytest.mark.parametrize("end", range(1, len(A3.split())))
def test_a_cut_response_loses_the_end_of_its_layout_and_nothing_else(build, end):
    whole, cut = lay_out(build(ids("q"), ids(A3), TAGS)), lay_out(build(ids("q"), ids(A3)[:end], TAGS))
    size = 1 + end
    assert np.array_equal(cut.positions_T, whole.positions_T[:size])
    assert np.array_equal(cut.trained_T, whole.trained_T[:size])
    assert np.array_equal(cut.source_T, whole.source_T[:size])
    assert np.array_equal(allowed(cut), allowed(whole)[:size, :size])


def test_a_cut_block_has_no_join():
    graph = structured_graph(ids("q"), ids("m <Parallel> <Path> a </Path> <Path> b"), TAGS)
    assert parents(graph) == [(), (0,), (1,), (1,)]


def test_a_response_may_begin_with_a_block_and_blocks_may_touch():
    graph = structured_graph(ids("q"), ids(f"{BLOCK} {BLOCK}"), TAGS)
    assert words(graph)[1] == "<Parallel>"
    assert words(graph)[4] == "</Parallel> \\n <Summary> s </Summary> <Parallel>"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=3), st.integers(0, 2))
def test_any_number_of_blocks_and_paths(blocks, filler):
    text = "m " * filler + "m"
    for paths in blocks:
        text += " <Parallel>" + "".join(" <Path>" + " p" * size + " </Path>" for size in paths)
        text += " </Parallel> \\n <Summary> s </Summary> m"
    graph = structured_graph(ids("q"), ids(text), TAGS)
    assert len(graph.segments) == 2 + sum(len(paths) + 1 for paths in blocks)
    layout = lay_out(graph)
    assert layout.tokens_T.tolist() == ids("q " + text)  # the text of the response is its layout
    lost = sum((sum(s + 2 for s in paths) ** 2 - sum((s + 2) ** 2 for s in paths)) // 2 for paths in blocks)
    assert allowed(layout).sum() == len(layout) * (len(layout) + 1) // 2 - lost  # pairs of tokens of different paths
    assert graph.num_trained == len(ids(text)) - sum(len(paths) + 3 for paths in blocks)


@pytest.mark.parametrize("build", [structured_graph, causal_graph])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<Parallel> <Path> a <Parallel>", "token 3: found <Parallel> in a path, but .*without a block of its own"),
        (f"{BLOCK[:-10]} <Parallel>", "token 12: found <Parallel> in a summary, but .*without a block of its own"),
        ("<Parallel> x <Path>", r"token 1: found text \(id 220\) in a block, but <Parallel> and </Path> are followed"),
        ("<Parallel> <Path> </Path> \\n <Path>", r"token 3: found text \(id 7\) in a block"),
        ("<Parallel> </Parallel>", "token 1: found </Parallel> in a block, but .*after at least one path"),
        ("<Parallel> <Summary>", "token 1: found <Summary> in a block"),
        ("<Parallel> <Path> a </Parallel>", "token 3: found </Parallel> in a path"),
        ("<Parallel> <Path> a <Path>", "token 3: found <Path> in a path"),
        ("<Parallel> <Path> </Path> </Parallel> <Summary>", "token 4: found <Summary> in a join, but .*the newline"),
        ("<Parallel> <Path> </Path> </Parallel> x", r"token 4: found text \(id 220\) in a join"),
        ("<Parallel> <Path> </Path> </Parallel> \\n \\n", r"token 5: found text \(id 7\) in a join"),
        ("<Parallel> <Path> </Path> </Parallel> \\n <Parallel>", "token 5: found <Parallel> in a join"),
        ("m </Path>", "token 1: found </Path> in main text, but the only tag outside a block is <Parallel>"),
        ("<Path>", "token 0: found <Path> in main text"),
        (f"{BLOCK} </Summary>", "token 13: found </Summary> in main text"),
        ("", "found no token"),
    ],
)
def test_what_breaks_the_canonical_form_is_refused_with_its_place(build, text, message):
    with pytest.raises(GraphError, match=rf"(?s){message}"):
        build(ids("q"), ids(text), TAGS)


def test_a_response_without_a_prompt_is_refused():
    with pytest.raises(GraphError, match="no token"):
        structured_graph([], ids("a"), TAGS)


@pytest.mark.parametrize("newline", [(), (7, 8)])
def test_the_newline_may_be_any_number_of_tokens(newline):
    tags = Tags(1, 2, 3, 4, 5, 6, newline)
    graph = structured_graph([9], [1, 3, 4, 3, 4, 2, *newline, 5, 9, 6], tags)
    assert graph.segments[-1].trained.tolist() == [False] * (2 + len(newline)) + [True, True]


@pytest.mark.parametrize("bad", [(1, 2, 3, 4, 5, 5, (7,)), (1, 2, 3, 4, 5, 6, (6,))])
def test_tags_that_share_an_id_are_refused(bad):
    with pytest.raises(GraphError, match="each tag needs an id of its own"):
        Tags(*bad)
