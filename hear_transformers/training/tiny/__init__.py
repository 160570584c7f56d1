"""How the embedded model is made: synthetic sounds and speech, a teacher, and what the network learns of them."""
