"""Data that several tests of the evaluation share."""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

# README of LongCat-Video, the numbers of report Figures 14 (text-to-video) and 16 (image-to-video).
PUBLISHED_MOS = {
    "t2v": {
        "Veo3": (3.99, 3.23, 3.86, 3.48),
        "PixVerse-V5": (3.81, 3.13, 3.81, 3.36),
        "Wan2.2-T2V-A14B": (3.70, 3.26, 3.78, 3.35),
        "LongCat-Video": (3.76, 3.25, 3.74, 3.38),
    },
    "i2v": {
        "Seedance 1.0": (4.12, 3.70, 3.22, 3.77, 3.35),
        "Hailuo-02": (4.18, 3.85, 3.18, 3.80, 3.27),
        "Wan2.2-I2V-A14B": (4.18, 3.33, 3.23, 3.79, 3.26),
        "LongCat-Video": (4.04, 3.49, 3.27, 3.59, 3.17),
    },
}


def exact_scores(published, dimensions, clusters, per_cluster=1, sd=0.85, seed=0):
    """Video scores whose means are the published ones exactly and whose spread is ``sd``."""
    rng = np.random.default_rng(seed)
    rows = []
    for model, means in published.items():
        for dimension, mean in zip(dimensions, means, strict=True):
            noise = rng.normal(size=clusters * per_cluster)
            noise = (noise - noise.mean()) / noise.std() * sd
            rows.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "dimension": dimension,
                        "prompt": [f"p{i}" for i in range(clusters * per_cluster)],
                        "cluster": [f"c{i // per_cluster}" for i in range(clusters * per_cluster)],
                        "score": mean + noise,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="session")
def published_mos():
    return PUBLISHED_MOS


@pytest.fixture(scope="session")
def make_exact_scores():
    return exact_scores


def tags_of_page(text):
    """Names and attributes of every tag of a page."""
    tags, parser = [], HTMLParser()
    parser.handle_starttag = lambda name, attributes: tags.append((name, dict(attributes)))
    parser.feed(text)
    return tags


@pytest.fixture(scope="session")
def tags_of():
    return tags_of_page
