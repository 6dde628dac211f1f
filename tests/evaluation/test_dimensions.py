"""The dimensions and options of the report."""

import pytest

from longtake.evaluation.dimensions import DIMENSIONS, TASKS, dimension_names, title_of
from longtake.evaluation.mos_protocol import ProtocolConfig
from longtake.evaluation.options import open_options, options_table
from longtake.runtime.errors import UserError


def test_the_dimensions_are_those_of_the_report():
    assert TASKS["t2v"] == ("text_alignment", "visual_quality", "motion_quality", "overall")
    assert TASKS["i2v"] == ("image_alignment", *TASKS["t2v"])
    judged = {name for name, item in DIMENSIONS.items() if item.judged}
    assert judged == {"text_alignment", "visual_quality", "motion_quality"}
    aspects = " ".join(DIMENSIONS["visual_quality"].aspects)
    assert "plausibility" in aspects and "realism" in aspects


def test_every_tier_has_a_descriptor_of_its_own():
    texts = [text for item in DIMENSIONS.values() for text in item.tiers]
    assert len(texts) == 25 == len(set(texts)) and all(text.endswith(".") for text in texts)


def test_names_and_titles():
    assert dimension_names("t2v") == TASKS["t2v"]
    assert dimension_names("t2v", ["alignment", "alignment", "x_y"]) == ("alignment", "x_y")
    assert title_of("motion_quality") == "Motion Quality" and title_of("x_y") == "x y"
    with pytest.raises(UserError, match="unknown task"):
        dimension_names("v2v")


def test_options_show_the_values_in_use():
    rule = ProtocolConfig(first_raters=4, extra_raters=1, threshold=1.5, scope="dimension")
    options = open_options(rule, human_weight=3)
    assert [o.key for o in options] == list("abcdefg")
    assert options[0].value == "range of the first 4 scores >= 1.5"
    assert options[1].value == "any dimension sends the dimension concerned to 1 more raters"
    assert options[2].value.startswith("3:1 human:automatic")
    rows = options_table(options).rows
    assert len(rows) == 7 and rows[3][0] == "d. dimensions_without_judge"
