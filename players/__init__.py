"""Players that fetch chunks over the emulated path, and the origin that serves them."""
