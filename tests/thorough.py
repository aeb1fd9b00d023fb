"""The tests that `pytest` leaves to `pytest --thorough`, so that the check of a change takes less time.

Nearly all of the time of the suite goes into tracing and compiling one more program: for one more type of model under
an analysis that others pass through. A fault in a type fails under most analyses, and one in an analysis with most
types; so of `SHARES` the check has some of the variants, other ones of each test in turn. `LONG` are measurements of
memory and of speed, and longer ways through what other tests take step by step. All that is named on the command line,
by file, test or keyword, is run whole.
"""

from collections.abc import Iterable, Mapping

import pytest

SHARES: Mapping[str, int] = {
    "test_kinds.py::test_rows_are_those_of_the_linearized_model": 6,
    "test_kinds.py::test_sums": 4,
    "test_kinds.py::test_heads_taken_away": 4,
    "test_kinds.py::test_patches": 4,
    "test_kinds.py::test_memory_plan": 4,
    "test_kinds.py::test_temporary_memory_does_not_grow_with_depth": 6,
    "test_proofs.py::test_family": 4,
    "steering/test_generation.py::test_every_family": 4,
    "loading/test_unembedding.py::test_the_head_is_what_is_stored": 4,
    "loading/test_plan_of_every_type.py::test_every_array": 3,
    "loading/test_gguf.py::test_logits": 2,
    "loading/test_gguf.py::test_packed": 3,
    "loading/test_gemma.py::test_packed": 3,
    "loading/test_hybrid_checkpoints.py::test_packed": 3,
    "loading/test_expert_checkpoints.py::test_packed": 2,
    "quantized/test_packed.py::test_format": 3,
    "quantized/test_packed.py::test_one_layer_at_a_time_is_unpacked": 4,
    "nn/test_parallel.py::test_four_devices_give_what_one_gives": 3,
    "nn/test_experts.py::test_map_is_the_jacobian_and_affine": 3,
    "activations/test_batches.py::test_padding_is_not_seen": 3,
    "attribution/test_circuits.py::test_edges_are_those_of_autograd": 3,
    "attribution/test_circuits.py::test_paths": 3,
    "attribution/test_circuits.py::test_what_enters_a_node_leaves_it": 3,
    "attribution/test_attention_scores.py::test_tables_sum_to_the_scores_of_transformers": 3,
    "attribution/test_attribution.py::test_every_list_sums_to_the_value": 3,
    "causal/test_edges.py::test_edges_of_every_kind_of_block": 4,
    "causal/test_patching.py::test_against_transformers": 3,
    "causal/test_head_ablation.py::test_against_transformers": 3,
    "lens/test_lens.py::test_the_exact_lens": 3,
    "lens/test_lens.py::test_against_transformers": 3,
    "spectrum/test_spectrum.py::TestKrylov::test_repeated_values_and_small_gaps": 7,
}
"""The check has one variant in so many of each of these tests."""

LONG: tuple[str, ...] = (
    "causal/test_head_ablation.py::test_packed_projections_are_unpacked",
    "loading/test_expert_tensors.py::test_peak_memory",
    "loading/test_plan.py::test_measured_peak",
    "loading/test_plan.py::test_measured_peak_of_a_long_prompt",
    "loading/test_smollm2.py::test_float64",
    "nn/test_parallel.py::test_two_processes",
    "report/test_commands.py::test_the_page_of_the_docs",
    "report/test_explain.py::test_what_singular_vectors_take_in_memory",
    "report/test_report.py::TestBrowser::test_a_long_prompt",
    "test_benchmarks.py::test_a_few_layers_say_what_all_take",
    "test_benchmarks.py::test_dense_map_against_its_peers",
    "test_benchmarks.py::test_dense_map_reaches_its_floor",
    "test_benchmarks.py::test_gpu_tasks_of_a_hybrid_and_a_mixture",
    "test_benchmarks.py::test_gpu_tasks_of_two_shapes_in_four_bits",
    "test_benchmarks.py::test_patterns_of_the_delta_rule",
    "test_benchmarks.py::test_products_with_packed_weights",
    "test_benchmarks.py::test_rows_through_experts",
    "test_benchmarks.py::test_what_a_circuit_costs",
)
"""Tests that the check leaves out, whole."""


def is_whole_suite(config: pytest.Config) -> bool:
    """Whether no file, test, keyword or mark is named. Only the first process knows, and tells the workers of xdist."""
    if hasattr(config, "workerinput"):
        return config.workerinput["is_whole_suite"]
    named = config.args_source != pytest.Config.ArgsSource.TESTPATHS
    return not (named or config.option.keyword or config.option.markexpr)


def left_out(nodes: Iterable[str]) -> set[str]:
    """The tests, by their node ids below the folder of the tests, that are in the thorough selection alone."""
    starts = {name: start for start, name in enumerate(SHARES)}
    seen = dict.fromkeys(SHARES, 0)
    names = set()
    for node in nodes:
        test = node.partition("[")[0]
        if test in SHARES:
            if (seen[test] - starts[test]) % SHARES[test]:
                names.add(node)
            seen[test] += 1
        elif node in LONG or test in LONG:
            names.add(node)
    return names
