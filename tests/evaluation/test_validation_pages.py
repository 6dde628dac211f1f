"""Simulated evidence of VBench: as asked for, and judged as on a page."""

from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.validation_pages import SUITE_PROMPTS, page_verdict, suite_sides
from longtake.evaluation.vbench.result_files import ResultSet
from longtake.evaluation.vbench.suites import VBENCH2

SETTINGS = ComparisonSettings(resamples=300, seed=1)


def test_the_better_model_wins_from_either_side() -> None:
    assert page_verdict([], [suite_sides((0.85, 0.3), 4)], SETTINGS) == "first"
    assert page_verdict([], [suite_sides((0.3, 0.85), 4)], SETTINGS) == "second"
    assert page_verdict([], [], SETTINGS) == "none"


def test_results_have_every_dimension_and_the_chance_that_was_asked() -> None:
    sides = suite_sides((0.5, 0.5), 7)
    again = suite_sides((0.5, 0.5), 7)
    for side, same in ((sides.first, again.first), (sides.second, again.second)):
        assert isinstance(side, ResultSet) and isinstance(same, ResultSet)
        assert side.dimensions.keys() == VBENCH2.dimensions.keys()
        values = []
        for name, results in side.dimensions.items():
            per_prompt = 1 if VBENCH2.dimensions[name].per_prompt else 3
            assert len(results.videos) == SUITE_PROMPTS * per_prompt and not results.problems
            assert results.videos == same.dimensions[name].videos
            values += [video.value for video in results.videos.values()]
        assert abs(sum(values) / len(values) - 0.5) < 0.08  # about 800 videos of 270 prompts
    assert isinstance(sides.first, ResultSet) and isinstance(sides.second, ResultSet)
    assert sides.first.dimensions["Material"].videos != sides.second.dimensions["Material"].videos
