"""One page about an evaluation: what was found, how sure that is, and what it stands on."""
