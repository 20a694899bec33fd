"""Traces of requests, replayed in simulated time against the scheduler itself and against simpler policies."""
