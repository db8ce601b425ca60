"""What is known of the instrument and of matter: counts become physics here."""
