"""Published files of a model: finding, fetching and checking them, and reading what they say."""
