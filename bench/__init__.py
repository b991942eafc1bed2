"""Side-by-side measurements: `make bench`, or `python -m bench engine | llama | server`.

Ratios from one run, taken in turn and as medians, since machines differ and drift. Run it on an idle machine.
"""
