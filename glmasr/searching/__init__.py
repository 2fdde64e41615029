"""What the searches of `decode` are made of: their rows, and the automaton that favors listed phrases."""
