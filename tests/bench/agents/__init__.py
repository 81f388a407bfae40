"""Many agents of one controller, as far as a bench of the controller needs them: identities and open streams."""
