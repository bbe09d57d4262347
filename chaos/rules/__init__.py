"""The promises, one function each, by what they are about. Pure."""
