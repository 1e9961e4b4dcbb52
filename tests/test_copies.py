"""Facts that the Rust core and the Python package both state: they must be the same."""

from __future__ import annotations

import re

import numpy as np

import q4hifi
from q4hifi.allocation.measured_plan import REFINED
from q4hifi.codec import rows
from q4hifi.codec.input_correlations import Hessian, correlations_of, known_inputs
from q4hifi.engines.llama import context as llama
from q4hifi.evaluate.limits import LONGEST_CHUNK
from q4hifi.formats.layout import FORK, Format
from q4hifi.formats.tensor_names import SAME_INPUT, first_with_same_input, role_of
from q4hifi.formats.types import CODEC_TYPES, F32, Q4_HIFI, REFINABLE_TYPES, TYPES
from synthetic import EXAMPLE, ROOT


def test_refined_types_are_those_that_the_core_refines() -> None:
    x = np.random.default_rng(1).standard_normal((4, 512)).astype(np.float32)

    def data(kind: str, refine: bool) -> bytes:
        outliers = 8 if kind == Q4_HIFI.name else 0
        tensor = q4hifi.quantize(x, kind, outliers=outliers, refine=refine)
        return b"".join(part.tobytes() for part in tensor.parts)

    kinds = (*CODEC_TYPES, Q4_HIFI.name)
    assert {kind for kind in kinds if data(kind, False) != data(kind, True)} == set(REFINABLE_TYPES)
    assert set(REFINED) == set(REFINABLE_TYPES) == {kind for kind in kinds if TYPES[kind].refinable}


def test_formats_take_error_feedback_as_the_core_does() -> None:
    generator = np.random.default_rng(1)
    x, u = (generator.standard_normal(shape).astype(np.float32) for shape in ((4, 512), (512, 4)))
    h = u @ u.T + np.eye(512, dtype=np.float32)
    importance = np.diag(h).copy()
    inputs = known_inputs(importance, correlations_of(h[np.triu_indices(512, 1)], importance), 1e6)

    def data(form: Format, inputs: Hessian | None) -> bytes:
        parts, _ = rows.encode(
            (x.reshape(-1).view(np.uint8),), Format(F32), form, 512, importance, refine=True, inputs=inputs
        )
        return b"".join(part.tobytes() for part in parts)

    forms = [Format(TYPES[kind]) for kind in CODEC_TYPES]
    forms += [Format(Q4_HIFI, 8), Format(Q4_HIFI), Format(Q4_HIFI, 8, FORK)]
    for form in forms:
        assert (data(form, inputs) != data(form, known_inputs(importance))) == form.takes_feedback, form


def test_matrices_with_the_same_input_have_the_same_sums() -> None:
    model = q4hifi.Model(EXAMPLE)
    sums = model.input_sums()
    model.sequence().evaluate(np.arange(16, dtype=np.uint32), "none", sums=sums)
    inputs = {name: squares.tobytes() for name, (squares, _) in sums.all().items() if name.startswith("blk.")}
    assert SAME_INPUT.keys() < {role_of(name) for name in inputs}
    for name, squares in inputs.items():
        same = {other for other in inputs if inputs[other] == squares}
        assert {first_with_same_input(other) for other in same} == {first_with_same_input(name)}


def test_a_chunk_that_is_traced_is_a_batch_of_either_engine() -> None:
    source = (ROOT / "src/model/forward.rs").read_text()
    batch = re.search(r"pub const BATCH: usize = (\d+);", source)
    assert batch is not None
    assert int(batch[1]) == LONGEST_CHUNK == llama.BATCH
