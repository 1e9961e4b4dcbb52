"""Fuzzing q4hifi's readers: valid files of every kind, damaged at random, must be read or rejected cleanly.

The tests do this for seconds. ``PYTHONPATH=python:tests python -m fuzzing --help`` explains how to do it for
longer.
"""
