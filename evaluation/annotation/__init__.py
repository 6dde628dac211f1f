"""Pages on which raters answer: one HTML file that works without a network."""
