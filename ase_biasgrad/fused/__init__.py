"""Networks described once, as layers that know their derivatives."""
