"""The automatic judge: trained on ratings, calibrated to the raters' scale, checked by a report."""
