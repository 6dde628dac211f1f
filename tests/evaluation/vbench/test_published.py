"""Table 8 as shipped data: totals follow, unknown models are named, damage is noticed."""

import json
from pathlib import Path

import numpy as np
import pytest

from longtake.evaluation.vbench.published import (
    PUBLISHED,
    find_published,
    published_models,
    rough_error,
)
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2
from longtake.evaluation.vbench.totals import all_scores, total_score
from longtake.runtime.errors import UserError

# Means of the five printed categories, computed by hand from Table 8.
TOTALS = {
    "HunyuanVideo": 55.298,
    "Wan2.1": 60.198,
    "Sora-480p": 58.376,
    "Kling1.6": 58.998,
    "Vidu Q1": 62.704,
    "Seedance 1.0 Pro": 59.812,
    "Veo3": 66.720,
    "LongCat-Video": 62.116,
}


def test_all_eight_totals_follow_from_their_categories() -> None:
    models = published_models(VBENCH2)
    assert set(models) == set(TOTALS)
    for name, model in models.items():
        total = 100 * total_score(VBENCH2, model.categories)
        assert total == pytest.approx(TOTALS[name], abs=1e-9)
        assert total == pytest.approx(100 * model.categories["Total"], abs=0.01)


def test_the_text_about_the_ranks_follows() -> None:
    models = published_models(VBENCH2)
    by_total = sorted(models, key=lambda name: -models[name].categories["Total"])
    assert by_total[:3] == ["Veo3", "Vidu Q1", "LongCat-Video"]
    assert max(models, key=lambda n: models[n].categories["Commonsense"]) == "LongCat-Video"


def test_the_dimensions_of_hunyuanvideo_give_its_categories() -> None:
    model = find_published(VBENCH2, "HunyuanVideo")
    found = all_scores(VBENCH2, model.dimensions)
    for name, printed in model.categories.items():
        assert found[name] == pytest.approx(printed, abs=1e-4)


def test_unknown_models_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"(?s)Sora-2.*LongCat-Video"):
        find_published(VBENCH2, "Sora-2")
    with pytest.raises(UserError, match="none shipped"):
        find_published(VBENCH1, "LongCat-Video")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-50],
        lambda content: content.replace('"percent"', '"stars"'),
        lambda content: content.replace('"vbench2"', '"vbench1"', 1),
        lambda content: json.dumps({"suite": "vbench2", "unit": "percent", "models": [{}]}),
        lambda content: "[]",
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: object) -> None:
    content = (PUBLISHED / "vbench2.json").read_text()
    (tmp_path / "vbench2.json").write_text(damage(content))  # type: ignore[operator]
    with pytest.raises(UserError, match="damaged"):
        published_models(VBENCH2, tmp_path)


def test_the_rough_error_is_that_of_independent_yes_or_no_prompts() -> None:
    categories = find_published(VBENCH2, "LongCat-Video").categories
    rng = np.random.default_rng(0)
    draws = {
        d.name: rng.binomial(d.prompts, categories[category.name], 20_000) / d.prompts
        for category in VBENCH2.categories
        for d in category.dimensions
    }
    simulated = {name: values.std() for name, values in all_scores(VBENCH2, draws).items()}
    assert rough_error(VBENCH2, categories) == pytest.approx(simulated, rel=0.03)
    assert rough_error(VBENCH2, categories)["Total"] == pytest.approx(0.021, abs=0.001)


def test_a_total_alone_has_no_rough_error() -> None:
    assert rough_error(VBENCH2, {"Total": 0.6}) == {}
