"""The whole chain on studies whose truth is known; the long run states the error rates."""

import pytest

from longtake.evaluation.validation import validate, validation_table


def test_the_chain_recovers_the_truth_in_a_few_studies():
    seen = []
    result = validate(6, num_prompts=50, seed=3, on_progress=seen.append)
    assert seen == list(range(1, 7))
    by_name = {rate.name: rate for rate in result.rates}
    for name in (
        "worse model called worse (MOS)", "worse model called worse (GSB)",
        "worse model called worse (page: people, pairs, VBench 2.0)",
        "order of four models recovered (MOS)", "order of four models recovered (Bradley-Terry)",
    ):  # fmt: skip
        assert by_name[name].count >= 5 and by_name[name].studies == 6
    for name in (
        "equal models called different (MOS)", "equal models called different (GSB)",
        "equal models called different (page: people, pairs)",
        "equal models called different (page: people, pairs, VBench 2.0)",
    ):  # fmt: skip
        assert by_name[name].count <= 2  # P(more) = 0.2 % at a rate of 5 %
        assert by_name[name].ci_low <= by_name[name].rate <= by_name[name].ci_high
    table = validation_table(result)
    assert len(table.rows) == 10 and "FAILED" not in [row[-1] for row in table.rows[5:]]


@pytest.mark.slow
def test_two_equal_models_are_not_called_different():
    result = validate(200, num_prompts=60, seed=0)
    for rate in result.rates[:5]:
        assert rate.studies == 200
        assert rate.ci_low <= 0.05, rate
    assert result.passed
