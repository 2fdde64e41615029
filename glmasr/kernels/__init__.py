"""The same modules, faster, with the same interface: oneDNN layouts, int8, CUDA graphs."""
