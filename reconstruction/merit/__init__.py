"""Figures of merit over plain arrays: each file hides how one kind of them is defined."""
