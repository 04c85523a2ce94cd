"""Back ends of `testbed.link.Link`."""
