# What is done again and again, by name: `just` lists it. The commands themselves are in .ci/, so that
# continuous integration, pre-commit and this file run the same ones.

# List the recipes.
default:
    @just --list

# An editable install with all that development needs; again after a change in src/.
build:
    pip install -e '.[dev]'

# Python tests, for example `just test tests/test_plan.py -q`.
test *arguments:
    pytest {{ arguments }}

# Formatting, lints, types, the rooms; changes nothing.
lint:
    .ci/lint

# Format the code of both languages.
format:
    cargo fmt
    ruff format python tests benches .ci

# The Rust core: lints, tests, docs, benches once, sanitizers.
rust:
    .ci/rust

# The documentation site, into site/.
docs:
    .ci/docs site

# Fuzz every target and every kind of file for that many seconds each.
fuzz seconds="3600":
    .ci/fuzz {{ seconds }}

# A manylinux wheel in dist/.
wheel:
    .ci/wheel

# Everything that must hold, in an environment of its own.
all:
    .ci/run
