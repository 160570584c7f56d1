"""Training of the networks that this package ships."""
