"""Reductions: rows, columns, and results that are shared by threads, warps, blocks or clusters."""
