"""Sound files of every kind that q4hifi reads, damaged at random, and what must not happen to their reader.

``PYTHONPATH=python:tests python -m fuzzing --help`` says how it is run for longer than in the tests.
"""
