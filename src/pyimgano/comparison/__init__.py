"""Runs side by side: what two or more runs have in common, and which model ranks where."""

from .compare import compare_runs
from .leaderboard import make_leaderboard
from .leaderboard_forms import render_leaderboard, write_leaderboard

__all__ = ["compare_runs", "make_leaderboard", "render_leaderboard", "write_leaderboard"]
