"""What benchmarks/on_device.py is made of.

runner: sections in processes of their own, one measuring at a time, within a budget of minutes;
turns: what a section says to the runner; sections: the list of them; the other files: what each
measures. The first three import no JAX: processes that read data import them again.
"""
