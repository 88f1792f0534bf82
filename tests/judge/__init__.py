"""What must hold of every run, simulated or real, judged from what was recorded of it.

evidence.py   what a run leaves behind: what clients did and were told, and what the streams ever stored
verdict.py    what is wrong with it
"""
