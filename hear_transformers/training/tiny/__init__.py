"""How the embedded model is made: synthetic sounds and speech, a teacher, and the training of the network on them."""
