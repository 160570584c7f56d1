"""Training: of any network on labelled audio, and of the model that this package ships (`embedded`)."""
