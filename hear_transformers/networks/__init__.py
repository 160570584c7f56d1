"""Building blocks of the families: networks, front ends, and the records that describe them."""
