"""Models that are on this machine already: found, read by their headers, judged by rules, and registered."""
