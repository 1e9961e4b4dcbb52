"""Calls that mypy checks (it is among its files): options by keyword have the types of QuantizeOptions'
fields."""

from __future__ import annotations

import q4hifi


def accepted() -> None:
    options = q4hifi.QuantizeOptions("Q4_K_M", imatrix="imatrix.gguf", threads=2)
    report: q4hifi.QuantizeReport = q4hifi.quantize_file("a.gguf", "b.gguf", options)
    plan: q4hifi.Plan = q4hifi.plan_file("a.gguf", options=options)
    q4hifi.quantize_file("a.gguf", "b.gguf", "Q4_K_M", imatrix="imatrix.gguf", overwrite=True)
    q4hifi.quantize_file("a.gguf", "b.gguf", type="Q4_K_M", tensor_types=[("attn_v", "q8_0")])
    q4hifi.plan_file("a.gguf", like="Q4_K_M", stock=True)
    print(report, plan)


def refused() -> None:
    q4hifi.quantize_file("a.gguf", "b.gguf", "Q4_K_M", no_such_option=1)  # type: ignore[call-overload]
    q4hifi.quantize_file("a.gguf", "b.gguf", threads="2")  # type: ignore[call-overload]
    q4hifi.plan_file("a.gguf", "Q4_K_M", "imatrix.gguf")  # type: ignore[call-overload]
    q4hifi.QuantizeOptions("Q4_K_M", "imatrix.gguf")  # type: ignore[call-arg, arg-type]
