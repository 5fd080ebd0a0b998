"""All hostile files, each with the exit code and the words of the message that it must lead to."""

from tests.hostile import attributes, external, growth, names, structure, tensors
from tests.hostile.build import Case

CASES: tuple[Case, ...] = (
    *structure.CASES,
    *attributes.CASES,
    *tensors.CASES,
    *external.CASES,
    *growth.CASES,
    *names.CASES,
)
