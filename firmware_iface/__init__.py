"""What is known of the chip and the wire, and the host's side of both."""
