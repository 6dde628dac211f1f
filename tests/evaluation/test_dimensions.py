"""The dimensions of the report, and the only table of their names."""

from longtake.evaluation.dimensions import DIMENSIONS, TASKS, dimension_names, title_of


def test_the_dimensions_are_those_of_the_report():
    assert TASKS["t2v"] == ("text_alignment", "visual_quality", "motion_quality", "overall")
    assert TASKS["i2v"] == ("image_alignment", *TASKS["t2v"])
    judged = {name: item.code for name, item in DIMENSIONS.items() if item.judged}
    assert judged == {"text_alignment": "TA", "visual_quality": "VQ", "motion_quality": "MQ"}


def test_every_tier_has_a_descriptor_of_its_own():
    texts = [text for item in DIMENSIONS.values() for text in item.tiers]
    assert len(texts) == 25 == len(set(texts)) and all(text.endswith(".") for text in texts)


def test_names_and_titles():
    assert dimension_names("t2v") == TASKS["t2v"]
    assert dimension_names("t2v", ["alignment", "alignment", "x_y"]) == ("alignment", "x_y")
    assert title_of("motion_quality") == "Motion Quality" and title_of("x_y") == "x y"
