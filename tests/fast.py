"""The tests of the working loop: `pytest -m fast` runs these, in under two minutes on two cores.

Each row names a folder, a file, a test or one case of a test, below this folder. Together they touch every package:
exact maps and sums, parity of some variants with transformers, every kind of file, and what is refused.
A test that takes more than some seconds of CPU time does not belong here; the whole suite decides.
"""

FAST = (
    # The map, its proofs and its parts.
    "test_parity.py::test_variant[llama, tied]",
    "test_parity.py::test_variant[gemma2]",
    "test_parity.py::test_variant[phi]",
    "test_parity.py::test_variant[olmo2]",
    "test_parity.py::test_rules[qwen2-half]",
    "test_proofs.py::test_family[llama, biases]",
    "test_proofs.py::test_no_family_is_left_out",
    "test_proofs.py::test_a_defect_is_relative_to_the_largest_part",
    "nn/test_activations.py",
    "nn/test_fingerprint.py",
    "nn/test_freeze_rules.py::test_the_ends_of_the_mix_are_the_named_rules",
    "nn/test_precision.py::test_bad_input",
    "linearize/test_local_map.py::test_jacfwd_jacrev_and_rows_agree",
    "linearize/test_local_map.py::test_linearize_does_not_change_the_output",
    "linearize/test_local_map.py::test_the_operator_is_its_dense_matrix",
    "linearize/test_local_map.py::test_the_bias_is_what_the_biases_bring",
    "linearize/test_local_map.py::test_the_replayed_map_is_linear_at_every_point",
    "linearize/test_local_map.py::test_what_is_not_there_is_refused",
    "linearize/test_rows.py::test_blocks_of_any_size",
    "linearize/test_rows.py::test_interrupted_and_continued",
    # What is built on it.
    "attribution/test_attribution.py::test_targets_and_positions",
    "attribution/test_attribution.py::test_what_is_not_there_is_refused",
    "attribution/test_streams.py",
    "causal/test_causal.py::test_deletion_is_the_model_without_each_token",
    "causal/test_causal.py::test_rank_correlation",
    "causal/test_patching.py::test_where_it_must_do_nothing_or_all",
    "lens/test_lens.py::TestRead",
    "lens/test_lens.py::TestFiles::test_there_and_back",
    "lens/test_lens.py::TestFiles::test_pickles_that_are_refused",
    "spectrum/test_spectrum.py::TestGram::test_values",
    "spectrum/test_spectrum.py::TestKrylov::test_float64",
    "spectrum/test_spectrum.py::TestRanks::test_of_spectra",
    "spectrum/test_spectrum.py::TestWords::test_columns_and_rows",
    "steering/test_generation.py::test_stops",
    "steering/test_steering.py::test_laws",
    "steering/test_steering.py::test_cached_steering_is_uncached_steering",
    "report/test_explain.py::test_explanation_of_the_small_model",
    "report/test_explain.py::TestAttribution",
    "report/test_report.py::TestFile",
    "report/test_check.py::TestTokenizer",
    # Files.
    "common",
    "checkpoint/test_checkpoint.py",
    "checkpoint/test_gguf_shards.py::test_any_file_opens_all",
    "checkpoint/test_real_configs.py::test_refused",
    "loading/test_load.py::TestRefused::test_config",
    "loading/test_load.py::TestRefused::test_a_path_out_of_the_folder",
    "loading/test_load.py::TestRefused::test_a_pickle_is_never_opened",
    "loading/test_gguf.py::test_logits[llama]",
    "loading/test_gguf.py::test_every_architecture_is_written_here",
    "loading/test_unembedding.py::test_matrices_are_compared_by_rows",
    "loading/test_plan.py::test_70b_in_four_bits",
    "quantized/test_packed.py::test_codes",
    "quantized/test_packed.py::test_rows_that_share_a_byte",
    "quantized/test_packed.py::test_every_bit_of_ggufs_blocks[Q4_K]",
    "quantized/test_packed.py::test_format[nf4]",
    "quantized/test_packed.py::test_format[gptq]",
    "quantized/test_packed.py::test_methods_that_are_not_read",
    "tokenizer/test_gguf_tokenizer.py",
    "tokenizer/test_tokenizer.py::test_bos",
    "tokenizer/test_tokenizer.py::test_pre_tokenizers[llama-bpe]",
    "tokenizer/test_tokenizer.py::test_sentencepiece",
    "tokenizer/test_tokenizer_files.py::test_tekken",
    "tokenizer/test_chat.py::test_several_templates",
    # The tree.
    "test_arguments.py",
    "test_hostile.py::test_how_deep_json_may_be",
    "test_hostile.py::test_names_of_checkpoints",
    "test_fast.py",
    "test_package.py::test_small_model_is_small",
    "test_benchmarks.py::test_report_says_where_we_lose",
    "test_benchmarks.py::test_exponent",
)


def is_fast(node: str) -> bool:
    """Whether a test, by its node id below the folder of the tests, is one of `FAST`."""
    return any(node == row or node.startswith((f"{row}/", f"{row}::", f"{row}[")) for row in FAST)
