"""Runs that differ in one option only, proof that they do, and one report about them.

arms.py (which runs) -> stages.py (what is done with each, by which command) -> runner.py (done once, in order, whatever
is killed) -> facts.py (what a run has recorded) -> matching.py (do they match?) -> results.py, verdict.py (numbers) ->
report/ (the page and report.json).
"""
