"""Flax modules: blocks, the ResUNet, the CDSFL fusion, and the framework that holds them all."""
