"""The mathematics of policy optimisation: pure functions on flat tensors.

A leaf: nothing here knows records, recipes, engines or devices, keeps state, or picks a denominator on its own. Groups
and answers are ragged, so every function takes flat tensors with an index vector beside them. Letters:

    B  rollouts (answers)       `group_B` int64 names the group (problem) of each
    G  groups                   ids 0..G-1
    M  trained tokens           `sequence_M` int64 names the rollout of each; its tokens may stand anywhere

`mass_balance` looks at single positions instead, over the whole vocabulary, and names its own letters.
The dtype of the values that come in is the dtype of what goes out.
"""
