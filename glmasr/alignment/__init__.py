"""When each word was said: from a decoder's attention to the sound, read once more with the text that it wrote."""
