"""How figures and numbers look: SVG for pages, matplotlib's settings for papers, one look for each policy in both."""
