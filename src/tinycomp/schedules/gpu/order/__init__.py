"""What depends on the order of elements: running sums, sorting, updates at computed places."""
