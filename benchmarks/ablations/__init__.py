"""The parts of benchmarks/ablation.py: recipes, runs, records of runs, tables of records.

Recipes, records and tables are imported without JAX; runs are not.
"""
