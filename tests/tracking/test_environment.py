"""What is read from the machine that a run is on."""

from anabranch.tracking.environment import cpu_flags


def test_cpu_flags_are_read_from_the_first_core():
    assert cpu_flags("model name : X\nflags\t\t: fpu avx2 amx_bf16\n\nflags\t\t: fpu\n") == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags("Features : asimd\n") == set()  # ARM lists none
