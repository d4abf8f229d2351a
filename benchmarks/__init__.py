"""Benchmarks on real data and of memory; each is a module to run and prints a table."""
